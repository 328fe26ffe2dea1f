"""Files and folders that nobody may write, root neither: mounted again as read-only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from needs import lacking


@contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """In this block, a file or a folder can be read and not written; a missing folder is made."""
    if not place.exists():
        place.mkdir(parents=True)
    done = subprocess.run(["mount", "--bind", place, place], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lacking(f"nothing can be mounted ({done.stderr.strip()}): run as root, or under `unshare -rm`")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
