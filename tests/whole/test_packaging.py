"""The package as others get it: a wheel, with the configuration inside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of a wheel that was built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_composes_its_own_configuration_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """From a wheel, in a folder that is no checkout, the command prints the same configuration as from the checkout."""
    words = ["-m", "kdsweep.train", "--cfg", "job", "sweep=demo"]
    outputs = []
    for source in (installed, ROOT):
        environment = {**os.environ, "PYTHONPATH": str(source)}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        outputs.append(done.stdout)
    assert "loss:" in outputs[0]
    assert outputs[0] == outputs[1]


def test_the_wheel_holds_code_and_configuration_only(installed: Path) -> None:
    """The wheel has the checkout's whole conf/, the report's template and py.typed, but no tests and no scripts."""
    assert (installed / "kdsweep/report/templates/report.html.jinja").is_file()
    # The page's library comes with its licence.
    assert (installed / "kdsweep/report/assets/plotly-cartesian.min.js").is_file()
    assert "Permission is hereby granted" in (installed / "kdsweep/report/assets/plotly-LICENSE.txt").read_text()
    assert (installed / "kdsweep/py.typed").is_file()
    names = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(installed / "kdsweep/conf") for path in (installed / "kdsweep/conf").rglob("*")} >= names
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"kdsweep"}


def test_pins_name_no_index_and_fit_the_requirements() -> None:
    """constraints.txt pins every direct requirement by version, and names no address."""
    pins = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|file:|--", pins)
    required = re.findall(r'^    "([\w-]+)[><=]', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert "torch" in required
    pinned = set(re.findall(r"^([\w-]+)==", pins, flags=re.MULTILINE))
    assert set(required) <= pinned
