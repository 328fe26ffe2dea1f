"""Measures commands as whole processes: help, refusals and the debug experiment, compared with an import of Hydra.

The smallest possible Hydra application, without a configuration, is measured too. Every command except help takes at
least that time, and nothing in kdsweep can make it less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.measuring import ROUNDS, Figure, Finding, positive, take_turns, timed
from kdsweep.system.errors import RunError

GOAL = 1.5

HYDRA = (sys.executable, "-c", "import hydra")
KDSWEEP = (sys.executable, "-m", "kdsweep.train")
# The names of the figures, and the overrides that are refused.
REFUSALS: Mapping[str, str] = {
    "a wrong key": "loss.alhpa=0.3",
    "a wrong value": "epochs=0",
    "a wrong alpha": "loss.alpha=2",
}
# A value that is refused only after torch is imported.
TORCH_REFUSAL = "optimizer.lr=-1"
TINY = ("experiment=debug", "data.n_train=96", "data.val_size=32", "data.n_test=32", "epochs=1", "threads=1")

BARE_APPLICATION = """
import hydra

@hydra.main(config_path=None, version_base=None)
def main(cfg):
    pass

main()
"""


def process(folder: Path, *command: str, status: int = 0) -> Callable[[], float]:
    """A side: runs a process from start to end.

    Raises:
        RunError: The process ended with another exit status than `status`.
    """
    environment = {**os.environ, "KDSWEEP_HOME": str(folder)}

    def run() -> float:
        ended = []
        seconds = timed(
            lambda: ended.append(
                subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            )
        )
        (done,) = ended
        if done.returncode != status:
            raise RunError(f"`{' '.join(command)}` ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
        return seconds

    return run


def measure(arguments: argparse.Namespace) -> Finding:
    """Help, refusals and experiment=debug as whole processes, against an import of Hydra"""
    with tempfile.TemporaryDirectory(prefix="kdsweep-benchmark-") as temporary:
        folder = Path(temporary)
        bare = folder / "bare.py"
        bare.write_text(BARE_APPLICATION, encoding="utf-8")
        sides = {
            "import hydra": process(folder, *HYDRA),
            "bare help": process(folder, sys.executable, str(bare), "--help"),
            "bare refusal": process(folder, sys.executable, str(bare), "loss.alhpa=0.3", status=1),
            "help": process(folder, *KDSWEEP, "--help"),
            **{name: process(folder, *KDSWEEP, word, status=2) for name, word in REFUSALS.items()},
        }
        turns = take_turns("start", sides, rounds=arguments.rounds)
        long = None
        if not arguments.short:
            slow = {
                "import hydra": sides["import hydra"],
                "wrong rate": process(folder, *KDSWEEP, TORCH_REFUSAL, status=2),
                "debug": process(folder, *KDSWEEP, *TINY),
            }
            long = take_turns("start, with torch", slow, rounds=ROUNDS)
    figures = [
        turns.ratio("kdsweep --help", "help", "import hydra", goal=GOAL),
        *(
            turns.ratio(f"the refusal of {name}", name, "import hydra", goal=GOAL, note=word)
            for name, word in REFUSALS.items()
        ),
        turns.ratio("an empty Hydra application: --help", "bare help", "import hydra", note="Hydra's own part"),
        turns.ratio("an empty Hydra application: a wrong key", "bare refusal", "import hydra", note="Hydra's own part"),
        *(Figure(f"{side}, in seconds", turns.median(side), unit="s") for side in ("import hydra", "help")),
    ]
    details = {"short": turns.values()}
    if long is not None:
        name = "the refusal of a value that torch judges"
        figures += [
            long.ratio(name, "wrong rate", "import hydra", goal=GOAL, note=TORCH_REFUSAL),
            long.ratio("experiment=debug, one epoch of 64 pictures", "debug", "import hydra"),
            Figure("experiment=debug, in seconds", long.median("debug"), unit="s"),
        ]
        details["long"] = long.values()
    lines = ["Ratios compare with a process that only imports Hydra."]
    return Finding("start: from the shell and back", figures, details, notes=lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=2 * ROUNDS, help=f"default: {2 * ROUNDS}")
    help_short = f"leave out what imports torch, which is measured {ROUNDS} times"
    parser.add_argument("--short", action="store_true", help=help_short)
