"""What a run ran on: versions, hardware and the state of the source code."""

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

# The tools for working on kdsweep itself have no part in a run.
NOT_USED_BY_RUNS = ("extra == 'dev'", "extra == 'docs'")

# Instructions by which libraries choose their kernels, and so the order of a sum.
NUMERIC_FEATURES = re.compile(r"(avx|amx|fma|vnni|f16c|neon|asimd|sve|bf16|i8mm|dotprod|fp16)\w*$")

# Environment variables by which one changes the same; how many threads there are is told apart.
NUMERIC_VARIABLES = re.compile(r"(ATEN|DNNL|ONEDNN|MKL|OPENBLAS|NVIDIA_TF32|CUBLAS)_(?!.*NUM_THREADS)\w+$")

# A patch is kept up to this size, which no hand-written change comes near.
MAX_CHANGES_BYTES = 1_000_000


def describe() -> dict[str, object]:
    """The surroundings of this process, JSON-able.

    `cores`: those that this process may use. `git_commit` and `git_dirty`: as `source_state`. `git_diff`: hash of
    `source_changes`; None in a dirty checkout says that no code and no configuration differs from the commit.
    `packages`: kdsweep's own requirements, as far as they are installed. `libraries`: as `libraries`.
    `variables`: those of the environment that change the last bits.
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
    """What the code of this process has that its commit hasn't, as a patch for `git apply`; None if there is nothing.

    Of a larger patch the first `MAX_CHANGES_BYTES`, and a last line that says so.
    """
    patch = _own_source()[1]
    data = (patch or "").encode()
    if len(data) <= MAX_CHANGES_BYTES:
        return patch
    rest = len(data) - MAX_CHANGES_BYTES
    return f"{data[:MAX_CHANGES_BYTES].decode(errors='ignore')}\n# kdsweep: {rest} bytes more were left out\n"


@functools.cache
def _own_source() -> tuple[dict[str, object], str | None]:
    # Once for a process: it goes on with the code that it has loaded, whatever is committed while a study runs.
    folder = Path(kdsweep.__file__).parent
    state = source_state(folder)
    patch = source_changes(folder) if state["git_dirty"] else None
    return {**state, "git_diff": None if patch is None else hashlib.sha256(patch.encode()).hexdigest()}, patch


def source_state(folder: Path) -> dict[str, object]:
    """The commit of the checkout that holds `folder`, and whether the checkout differs from it.

    New files count as a difference, ignored ones don't. Both are None where git is missing, where nothing is committed,
    or where the checkout only surrounds the folder (a wheel, installed into some project's virtual environment).
    """
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    changes = _git(folder, "status", "--porcelain") if commit else None
    return {"git_commit": commit, "git_dirty": None if changes is None else changes != ""}


def source_changes(folder: Path) -> str | None:
    """The uncommitted changes of `folder` and of `conf` beside it, as a patch; None if there are none.

    New files are in it as well. It is the same whatever the user has configured for git's output.
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
    # git ends with 1 where two files differ, and so does this diff always.
    patches = [
        _git(Path(top), "diff", *fixed, "--no-index", "/dev/null", name, statuses=(0, 1))
        for name in sorted(filter(None, new.split("\0")))
    ]
    text = "\n".join(filter(None, [changed, *patches]))
    return f"{text}\n" if text else None


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
        if name == "kdsweep" or requirement.replace('"', "'").endswith(NOT_USED_BY_RUNS):
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
    return found


@functools.cache
def cpu_model() -> str:
    """The processor's name, as precisely as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = re.findall(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if models:
            return str(models[0])
    return platform.processor() or platform.machine()


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """What the processor offers that changes the last bits, after the set that torch's own kernels use ("AVX512")."""
    tell = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.11 and newer
    offered = {name for name, there in tell().items() if there is True}
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        offered = set(lines[0].split()) if lines else offered
    return torch.backends.cpu.get_cpu_capability(), *sorted(filter(NUMERIC_FEATURES.match, offered))


@functools.cache
def libraries() -> dict[str, str]:
    """Versions of what computes below torch, as far as it tells them: oneDNN, MKL or another BLAS, cuDNN on a GPU."""
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
    """Git's answer; None if it fails. It takes no lock, so that it cannot disturb a commit that is being made.

    Args:
        statuses: Exit statuses that are no failure.
    """
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        answer = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    # A patch keeps the spaces at its start, and files that aren't UTF-8 are compared all the same.
    return answer.stdout.decode(errors="backslashreplace").rstrip("\n") if answer.returncode in statuses else None


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
