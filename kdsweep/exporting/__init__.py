"""A recorded student as files and as a model of MLflow's, checked to give the same answers."""
