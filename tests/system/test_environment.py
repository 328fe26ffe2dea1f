"""Claims about what a run records of its surroundings."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import artifacts, runs

import kdsweep
from kdsweep.system import environment


def test_the_surroundings_are_plain_values() -> None:
    """They go into environment.json and, in part, into tags: JSON gives back what it was given."""
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found


def test_what_a_result_depends_on_is_there() -> None:
    """The description has versions, hardware, and the number of threads, on which the last bits depend."""
    found = environment.describe()
    assert found["kdsweep"] == kdsweep.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["cpu"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())


def test_versions_are_those_of_the_requirements() -> None:
    """They are libraries that numbers depend on, those of extras too; neither kdsweep nor tools for working on it."""
    found = environment.versions()
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert {"torchvision", "hydra-core", "optuna", "mlflow", "numpy", "timm"} <= found.keys()
    assert not {"kdsweep", "ruff", "mypy", "pytest"} & found.keys()


def test_the_source_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process goes on with the code that it has loaded, whatever is committed while a study runs."""
    first = environment.describe()
    monkeypatch.setattr(environment, "source_state", lambda folder: pytest.fail("looked again"))
    assert environment.describe()["git_commit"] == first["git_commit"]


def test_the_processors_features_are_those_that_change_sums() -> None:
    """The first is the set for which torch chose its kernels; none only encrypts or counts."""
    kernels, *features = environment.cpu_features()
    assert kernels == torch.backends.cpu.get_cpu_capability()
    assert features == sorted(set(features))
    assert not {"aes", "popcnt", "sha_ni", "fpu"} & set(features)
    if kernels.startswith("AVX"):
        assert {"avx2", "fma"} <= set(features)


def test_what_computes_below_torch_is_named() -> None:
    """Its build of oneDNN decides how a convolution sums."""
    assert environment.libraries()["oneDNN"] in torch.__config__.show()


def test_variables_that_change_sums_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads is recorded elsewhere, and no other variable is recorded."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    monkeypatch.setenv("MY_TOKEN", "secret")
    variables = environment.describe()["variables"]
    assert isinstance(variables, dict)
    assert variables["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert not {"MKL_NUM_THREADS", "MY_TOKEN"} & variables.keys()


# Uncommitted changes


def git(top: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(top), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a package, its configuration, and notes that no run reads."""
    for name in ("package/__init__.py", "package/a.py", "conf/a.yaml", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one\n" * 5)
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(tmp_path, *words)
    return tmp_path


def test_changes_are_a_patch_that_can_be_applied(checkout: Path) -> None:
    """It holds changed and new files of package and configuration, and nothing else of the checkout."""
    assert environment.source_changes(checkout / "package") is None
    (checkout / "notes.txt").write_text("two\n")
    assert environment.source_changes(checkout / "package") is None
    wanted = {"package/a.py": "two\n", "conf/a.yaml": "three\n", "conf/new.yaml": "é\n"}
    for name, text in wanted.items():
        (checkout / name).write_text(text)
    patch = environment.source_changes(checkout / "package")
    assert patch is not None
    git(checkout, "stash", "-q", "-u")
    subprocess.run(["git", "-C", str(checkout), "apply", "-"], input=patch.encode(), check=True)
    assert {name: (checkout / name).read_text() for name in wanted} == wanted


def test_the_patch_is_the_same_whatever_git_is_told(checkout: Path) -> None:
    """Its hash distinguishes two states of the code, and not two users."""
    (checkout / "package" / "a.py").write_text("two\n" + "one\n" * 4)
    before = environment.source_changes(checkout / "package")
    for key, value in (("diff.noprefix", "true"), ("color.diff", "always"), ("diff.context", "0")):
        git(checkout, "config", key, value)
    assert before == environment.source_changes(checkout / "package")


@pytest.fixture
def changed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Makes that checkout kdsweep's home, for one test."""
    monkeypatch.setattr(kdsweep, "__file__", str(checkout / "package" / "__init__.py"))
    environment._own_source.cache_clear()
    yield checkout
    environment._own_source.cache_clear()


def test_the_changes_have_a_hash(changed: Path) -> None:
    """It is None if the code is the commit's, though notes may differ."""
    (changed / "notes.txt").write_text("two\n")
    found = environment.describe()
    assert (found["git_dirty"], found["git_diff"], environment.uncommitted_changes()) == (True, None, None)
    environment._own_source.cache_clear()
    (changed / "package" / "a.py").write_text("two\n")
    assert len(str(environment.describe()["git_diff"])) == 64
    assert "+two" in str(environment.uncommitted_changes())


def test_a_large_patch_is_cut(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line says so."""
    monkeypatch.setattr(environment, "MAX_CHANGES_BYTES", 100)
    (changed / "package" / "a.py").write_text("two\n" * 100)
    found = str(environment.uncommitted_changes())
    assert len(found) < 200
    assert found.endswith("bytes more were left out\n")


@pytest.mark.slow
def test_a_run_keeps_its_surroundings(home: Path) -> None:
    """environment.json of a real run describes the process that made it."""
    found = json.loads((artifacts(runs(home, "distill")[0]) / "environment.json").read_text())
    ours = environment.describe()
    assert {key: found[key] for key in ("python", "cpu", "packages")} == {
        key: ours[key] for key in ("python", "cpu", "packages")
    }
    assert found["threads"] == 1


def test_the_source_state_tells_commit_and_changes(tmp_path: Path) -> None:
    """Clean after a commit; dirty by a new file; unknown outside of a checkout and in an ignored folder of one."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    unknown = {"git_commit": None, "git_dirty": None}
    assert environment.source_state(package) == unknown
    for words in (["init", "-q"], ["add", "package"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = environment.source_state(package)
    assert len(str(clean["git_commit"])) == 40
    assert clean["git_dirty"] is False
    (package / "new.py").touch()
    assert environment.source_state(package) == {**clean, "git_dirty": True}
    installed = tmp_path / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert environment.source_state(installed) == unknown
