"""Describes what a run ran on: versions, hardware and the state of the source code."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import kdsweep

# Requirements with these marks are tools for working on kdsweep itself; runs don't use them.
NOT_USED_BY_RUNS = ("extra == 'dev'", "extra == 'docs'")

# Instruction sets by which libraries choose their kernels, and with them the order of a sum.
NUMERIC_FEATURES = re.compile(r"(avx|amx|fma|vnni|f16c|neon|asimd|sve|bf16|i8mm|dotprod|fp16)\w*$")

# Environment variables that change the choice of kernels. The number of threads is recorded by itself.
NUMERIC_VARIABLES = re.compile(r"(ATEN|DNNL|ONEDNN|MKL|OPENBLAS|NVIDIA_TF32|CUBLAS)_(?!.*NUM_THREADS)\w+$")

# The largest patch that is kept whole; changes made by hand stay far below it.
MAX_CHANGES_BYTES = 1_000_000


def describe() -> dict[str, object]:
    """Returns the surroundings of this process, JSON-able.

    `cores` counts the cores that this process may use. `git_commit` and `git_dirty` come from `source_state`.
    `git_diff` is the hash of `source_changes`; None in a dirty checkout means that neither code nor configuration
    differs from the commit. `packages` are kdsweep's own requirements that are installed, `libraries` is what the
    function of that name returns, and `variables` are the environment variables that change the last bits.
    """
    return {
        "kdsweep": kdsweep.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_features": list(cpu_features()),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        **_own_source()[0],
        "packages": versions(),
        "libraries": libraries(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if NUMERIC_VARIABLES.match(name)},
    }


def uncommitted_changes() -> str | None:
    """Returns the uncommitted changes of this process's code as a patch for `git apply`; None if there are none.

    A patch of more than `MAX_CHANGES_BYTES` is cut, and its last line says so.
    """
    patch = _own_source()[1]
    data = (patch or "").encode()
    if len(data) <= MAX_CHANGES_BYTES:
        return patch
    rest = len(data) - MAX_CHANGES_BYTES
    return f"{data[:MAX_CHANGES_BYTES].decode(errors='ignore')}\n# kdsweep: {rest} bytes more were left out\n"


@functools.cache
def _own_source() -> tuple[dict[str, object], str | None]:
    # Cached, since the process goes on with the code that it has loaded, whatever is committed while a study runs.
    folder = Path(kdsweep.__file__).parent
    state = source_state(folder)
    patch = source_changes(folder) if state["git_dirty"] else None
    return {**state, "git_diff": None if patch is None else hashlib.sha256(patch.encode()).hexdigest()}, patch


def source_state(folder: Path) -> dict[str, object]:
    """Returns the commit of the checkout that holds `folder`, and whether the checkout differs from it.

    New files count as a difference, ignored ones don't. Both values are None if git is missing, if nothing is
    committed, or if the checkout only surrounds the folder (a wheel that is installed into some project's virtual
    environment).
    """
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    changes = _git(folder, "status", "--porcelain") if commit else None
    return {"git_commit": commit, "git_dirty": None if changes is None else changes != ""}


def source_changes(folder: Path) -> str | None:
    """Returns the uncommitted changes of `folder` and of `conf` beside it, as a patch; None if there are none.

    New files are part of it. The user's own settings for git's output don't change it.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    beside = folder.parent / "conf"
    places = ("--", str(folder), *([str(beside)] if beside.is_dir() and beside.is_relative_to(top) else []))
    fixed = (
        *("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--diff-algorithm=myers", "--unified=3"),
        *("--no-relative", "--full-index", "--binary", "--src-prefix=a/", "--dst-prefix=b/"),
    )
    changed = _git(Path(top), "diff", *fixed, "HEAD", *places)
    new = _git(Path(top), "ls-files", "--others", "--exclude-standard", "-z", *places) or ""
    # git's exit status is 1 if two files differ, as they always do here.
    patches = [
        _git(Path(top), "diff", *fixed, "--no-index", "/dev/null", name, statuses=(0, 1))
        for name in sorted(filter(None, new.split("\0")))
    ]
    text = "\n".join(filter(None, [changed, *patches]))
    return f"{text}\n" if text else None


@functools.cache
def versions() -> dict[str, str]:
    """Returns the installed versions of kdsweep's direct requirements and of its extras' requirements, by name."""
    try:
        requirements = importlib.metadata.requires("kdsweep") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        requirements = []
    found: dict[str, str] = {}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if name == "kdsweep" or requirement.replace('"', "'").endswith(NOT_USED_BY_RUNS):
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
    return found


@functools.cache
def cpu_model() -> str:
    """Returns the processor's name, as precisely as the system knows it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = re.findall(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if models:
            return str(models[0])
    return platform.processor() or platform.machine()


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """Returns the instruction sets that change the last bits; first the one that torch's kernels use ("AVX512")."""
    tell = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.11 and newer
    offered = {name for name, there in tell().items() if there is True}
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        offered = set(lines[0].split()) if lines else offered
    return torch.backends.cpu.get_cpu_capability(), *sorted(filter(NUMERIC_FEATURES.match, offered))


@functools.cache
def libraries() -> dict[str, str]:
    """Returns the versions of the libraries below torch that it knows: oneDNN, MKL or another BLAS, cuDNN on a GPU."""
    built = torch.__config__.show()
    found = {
        "oneDNN": re.search(r"(?:MKL-DNN|oneDNN) v([\d.]+)", built),
        "MKL": re.search(r"Math Kernel Library Version ([\w.]+)", built),
        "BLAS": re.search(r"BLAS_INFO=(\w+)", built),
    }
    versions = {name: match[1] for name, match in found.items() if match is not None}
    if torch.cuda.is_available():
        versions["cuDNN"] = str(torch.backends.cudnn.version())
    return versions


def _git(folder: Path, *arguments: str, statuses: tuple[int, ...] = (0,)) -> str | None:
    """Returns git's output; None if it fails. It takes no lock, so that it can't disturb a commit that is being made.

    Args:
        folder: The folder in which git runs.
        arguments: The words after `git`.
        statuses: Exit statuses that don't count as a failure.
    """
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        answer = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    # Spaces at the start of a patch must stay, and files that aren't UTF-8 must not raise.
    return answer.stdout.decode(errors="backslashreplace").rstrip("\n") if answer.returncode in statuses else None


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
