"""Claims about the user's own code: where in it an error arose, and which files it is made of."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdsweep.system import user_code
from kdsweep.system.errors import UserError
from kdsweep.system.exit_status import explained
from kdsweep.system.user_code import as_user_error, fault, place_of, sources

FILES = {
    "minepkg/__init__.py": "from .net import make\n",
    "minepkg/net.py": "import json\nfrom . import parts\nimport torch\n\n\ndef make(n):\n    return parts.part(n)\n",
    "minepkg/parts.py": "import beside_it\n\n\ndef part(n):\n    return 1 / n if n else beside_it.fail({})\n",
    "minepkg/unused.py": "",
    "minepkg/broken.py": "def f(:\n",
    "beside_it.py": "def fail(d):\n    return d['a']\n",
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trusted package, and a module beside it."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("KDSWEEP_TRUST", "other.* minepkg.*")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("minepkg", "beside_it"))]:
        del sys.modules[name]


def raised(argument: object) -> Exception:
    """The error that the user's function raises for an argument."""
    try:
        importlib.import_module("minepkg").make(argument)
    except Exception as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("argument", "file", "line", "text"),
    [
        ("a", "minepkg/parts.py", "5, in part", "TypeError: unsupported operand"),
        (0, "beside_it.py", "2, in fail", "KeyError: 'a'"),
    ],
)
def test_an_error_is_placed_in_the_users_innermost_call(
    argument: object, file: str, line: str, text: str, package: Path
) -> None:
    """It may lie in a module that the trusted package imports; one line has type, message, file and line."""
    error = raised(argument)
    assert place_of(error) == f"{package / file}, line {line}"
    assert fault(error).startswith(text)
    shown = explained(error)
    assert isinstance(shown, UserError)
    assert f"({package / file}, line {line})" in str(shown)
    assert "KDSWEEP_TRACEBACK=1" in str(shown)
    assert "\n" not in str(shown)


def test_an_error_of_the_library_is_placed_where_the_user_called_it(package: Path) -> None:
    """Torch's and Python's own frames don't count."""
    (package / "minepkg" / "net.py").write_text("import json\n\n\ndef make(n):\n    return json.loads(n)\n")
    assert place_of(raised("{")) == f"{package / 'minepkg' / 'net.py'}, line 5, in make"


def test_an_error_of_another_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trusted package in it, or raised by kdsweep in words of its own, it stays what it is."""
    error = raised(0)
    monkeypatch.setenv("KDSWEEP_TRUST", "other.*")
    assert (place_of(error), as_user_error(error), fault(error)) == (None, None, "KeyError: 'a'")
    monkeypatch.delenv("KDSWEEP_TRUST")
    assert explained(error) is None
    assert as_user_error(UserError("known")) is None


def test_the_error_behind_another_is_the_users(package: Path) -> None:
    """Hydra raises its own from those of a component."""
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("Error in call to target") from raised(0)
    assert fault(caught.value) == f"KeyError: 'a' ({package / 'beside_it.py'}, line 2, in fail)"


def test_a_module_that_is_no_python_is_placed_by_its_line(package: Path) -> None:
    with pytest.raises(SyntaxError) as caught:
        importlib.import_module("minepkg.broken")
    assert fault(caught.value) == f"SyntaxError: invalid syntax ({package / 'minepkg' / 'broken.py'}, line 1)"


def test_sources_are_what_the_target_imports_of_the_users() -> None:
    """Packages on its way, modules beside it, and nothing of Python's, torch's or what isn't imported."""
    expected = ["beside_it.py", "minepkg/__init__.py", "minepkg/net.py", "minepkg/parts.py"]
    assert list(sources(["minepkg.make"])) == list(sources(["minepkg.net.make"])) == expected
    assert sources(["minepkg.make"])["beside_it.py"].decode() == FILES["beside_it.py"]
    assert "minepkg" not in sys.modules  # no code runs for it


@pytest.mark.parametrize("target", ["kdsweep.losses.kd", "torch.optim.SGD", "torchvision.models.resnet18", "no.such"])
def test_what_has_a_recorded_version_has_no_sources(target: str) -> None:
    """So runs without code of the user's stay what they are."""
    assert sources([target]) == {}


def test_an_edit_while_the_process_runs_is_not_what_it_runs(package: Path) -> None:
    """The process goes on with the code that it has loaded, and so do its records."""
    before = sources(["minepkg.make"])
    (package / "beside_it.py").write_text("x = 1\n")
    assert sources(["minepkg.make"]) == before
    user_code._content.cache_clear()
    assert sources(["minepkg.make"]) != before
