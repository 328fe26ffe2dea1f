"""Writes scikit-learn's scans of digits as PNG files and two tables: python make_scans.py [how many]."""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits


def main(n: int = 1797, root: Path = Path("pictures")) -> None:
    """Writes the first `n` scans; every fourth one is a test picture."""
    root.mkdir(parents=True, exist_ok=True)
    scans = load_digits()
    rows = {"train": [], "test": []}
    for i, (grey, label) in enumerate(zip(scans.images[:n], scans.target[:n], strict=True)):
        Image.fromarray((grey * 15.9).astype("uint8")).save(root / f"{i}.png")
        rows["test" if i % 4 == 0 else "train"].append(f"{i}.png,{label}\n")
    for split, lines in rows.items():
        (root / f"{split}.csv").write_text("".join(lines))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
