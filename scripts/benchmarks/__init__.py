"""The subcommands of `scripts/benchmark.py`, one in each module, and what they share."""
