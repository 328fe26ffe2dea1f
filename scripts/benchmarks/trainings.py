"""Trains a grid of alpha and tau with several seeds, for `search --trainings`: what settings and seeds really do.

The settings are those of `sweep=demo`: 100 pictures of digits, a ResNet18, EfficientNet-Lite0 as the teacher. Each run
adds a line to the file, and a grid that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from hydra import compose, initialize_config_dir

from benchmarks.measuring import Finding
from kdsweep.config.folder import CONFIG_FOLDER

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)
TAUS = (1.0, 4.0, 12.0)
COLUMNS = ("alpha", "tau", "seed", "val_accuracy", "test_accuracy")


def lines(alpha: float, tau: float, seed: int, epochs: int, root: Path) -> list[str]:
    """Returns the overrides of a run."""
    return [
        "data=digits",
        "data.train_fraction=0.1",
        "teacher=efficientnet_lite0",
        "model.stem=imagenet",
        "batch_size=50",
        "optimizer.lr=0.05",
        "n_passes=8",
        "threads=1",
        "resume=false",
        "checkpoint_share=0",
        f"epochs={epochs}",
        f"paths.root={root}",
        f"loss.alpha={alpha}",
        f"loss.tau={tau}",
        f"seed={seed}",
    ]


def measure(arguments: argparse.Namespace) -> Finding:
    """Trains a grid of alpha and tau with several seeds, and keeps the accuracies"""
    from kdsweep.train import train

    out: Path = arguments.out
    done = set()
    if out.exists():
        with out.open(encoding="utf-8", newline="") as file:
            done = {(float(row["alpha"]), float(row["tau"]), int(row["seed"])) for row in csv.DictReader(file)}
    else:
        out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    settings = [(alpha, tau) for alpha in ALPHAS for tau in TAUS if alpha > 0 or tau == TAUS[0]]
    for seed in range(arguments.seeds):  # seed by seed, so that an interruption leaves whole grids
        for alpha, tau in settings:
            if (alpha, tau, seed) in done:
                continue
            with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
                config = compose("config", lines(alpha, tau, seed, arguments.epochs, arguments.root))
            metrics = train(config).metrics
            values = f"{metrics['val/accuracy']:.6f},{metrics['test/accuracy']:.6f}"
            with out.open("a", encoding="utf-8") as file:
                file.write(f"{alpha},{tau},{seed},{values}\n")
    return Finding(f"{len(settings)} settings with {arguments.seeds} seeds each are in {out}", [], {})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    default = Path(__file__).parent / "alpha_tau_digits.csv"
    parser.add_argument("--out", type=Path, metavar="FILE", default=default, help="where the runs go (%(default)s)")
    parser.add_argument("--root", type=Path, metavar="DIR", default=Path("outputs/trainings"), help="records and cache")
    parser.add_argument("--seeds", type=int, metavar="N", default=4, help="seeds of each setting (%(default)s)")
    parser.add_argument("--epochs", type=int, metavar="N", default=20, help="epochs of each run (%(default)s)")
