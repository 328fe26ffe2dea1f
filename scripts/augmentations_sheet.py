"""Draws a sheet of pictures: a row for each augmentation, as a pass shows the first pictures of a folder to a student.

usage: scripts/augmentations_sheet.py PICTURES OUT.png     PICTURES holds train/<class>/* and test/<class>/*
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from kdsweep.config import build
from kdsweep.config.folder import CONFIG_FOLDER

OPTIONS = ("crop_flip", "cutout", "color", "trivial", "mixup", "cutmix")
N, GAP, SCALE = 12, 2, 2  # pictures in a row, pixels between them, enlargement


def sheet(folder: str) -> Image.Image:
    """Returns the sheet."""
    rows = []
    with TemporaryDirectory() as cache, initialize_config_dir(str(CONFIG_FOLDER)):
        for option in OPTIONS:
            words = ["data=image_folder", f"data.root={folder}", f"augment={option}", f"paths.root={cache}"]
            cfg = compose("config", [*words, "device=cpu"])
            data, views = build.inputs(cfg)
            step = max(len(data.train) // N, 1)
            pictures = views.batch(torch.arange(N) * step % len(data.train), 0)  # (N, H, W, 3)
            padded = torch.nn.functional.pad(pictures, (0, 0, 0, GAP, 0, GAP), value=255)
            rows.append(torch.cat(list(padded), dim=1))
    image = Image.fromarray(torch.cat(rows).numpy())
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sheet(str(Path(sys.argv[1]).resolve())).save(sys.argv[2])
