"""Logs the machine's load (CPU, memory, disk, network, GPU) beside a run's metrics, where MLflow is asked for it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdsweep.system.sqlite import driver_uri

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def logged(uri: str, run_id: str, *, goes_on: bool = False) -> Iterator[None]:
    """Logs the load until the block ends, if `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` is true.

    MLflow does so by itself in its fluent interface alone, which a `Store` does not use. How often it looks, and the
    name of the machine, are settings of MLflow too (`MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` and others).

    Args:
        uri: The store's.
        run_id: The run's.
        goes_on: Whether the run has such metrics already, after which these come.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # It would say that it starts, that it ends, and that it has found no GPU.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    monitor = SystemMetricsMonitor(run_id, resume_logging=goes_on, tracking_uri=driver_uri(uri))
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
