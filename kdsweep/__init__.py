"""kdsweep: knowledge-distillation experiments whose answer can be trusted."""

__version__ = "0.1.0"
