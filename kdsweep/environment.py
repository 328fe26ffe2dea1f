"""What a run ran on: versions, hardware and the state of the source code."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import kdsweep

# The tools for working on kdsweep itself have no part in a run.
NOT_USED_BY_RUNS = "extra == 'dev'"


def describe() -> dict[str, object]:
    """The surroundings of this process, JSON-able.

    `cores`: those that this process may use. `git_commit` and `git_dirty`: as `source_state`. `packages`: kdsweep's own
    requirements, as far as they are installed.
    """
    return {
        "kdsweep": kdsweep.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        **_own_source(),
        "packages": versions(),
    }


@functools.cache
def _own_source() -> dict[str, object]:
    # Once for a process: it goes on with the code that it has loaded, whatever is committed while a study runs.
    return source_state(Path(kdsweep.__file__).parent)


def source_state(folder: Path) -> dict[str, object]:
    """The commit of the checkout that holds `folder`, and whether the checkout differs from it.

    New files count as a difference, ignored ones don't. Both are None where git is missing, where nothing is committed,
    or where the checkout only surrounds the folder (a wheel, installed into some project's virtual environment).
    """
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    changes = _git(folder, "status", "--porcelain") if commit else None
    return {"git_commit": commit, "git_dirty": None if changes is None else changes != ""}


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of kdsweep's direct requirements and of its extras', by name."""
    try:
        requirements = importlib.metadata.requires("kdsweep") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        requirements = []
    found: dict[str, str] = {}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if name == "kdsweep" or NOT_USED_BY_RUNS in requirement.replace('"', "'"):
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
    return found


def cpu_model() -> str:
    """The processor's name, as precisely as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = re.findall(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if models:
            return str(models[0])
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """git's answer; None if it fails. It takes no lock, so that it cannot disturb a commit that is being made."""
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
