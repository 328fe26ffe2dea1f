"""Claims about `kdsweep --help`: what it shows is what Hydra composes, with the comments of the YAML files."""

from __future__ import annotations

import functools
import os
import re

import pytest
from configurations import composed
from hydra.errors import HydraException
from omegaconf import OmegaConf

from kdsweep import train
from kdsweep.config import help_page
from kdsweep.config.folder import CONFIG_FOLDER

OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONFIG_FOLDER.glob("*/*.yaml"))
    if path.parent != CONFIG_FOLDER / "hydra"
]

pytestmark = pytest.mark.xdist_group("compositions")

# A value that leaves no room for its comment.
DECAYS = "weight_decays: [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]"


# The first line behind the keys.
ENVIRONMENT = re.compile("KDSWEEP_HOME=DIR").match


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")


def page(*words: str) -> str:
    return page_of(int(os.environ["COLUMNS"]), words)


@functools.cache
def page_of(_columns: int, words: tuple[str, ...]) -> str:
    return help_page.page(CONFIG_FOLDER, ["--help", *words])


def keys(text: str) -> str:
    """The part of the page that lists the keys."""
    return text.partition("Configuration (key=value):\n")[2].partition("KDSWEEP_HOME=DIR")[0]


def joined(text: str) -> list[str]:
    """The lines of the page, with each comment in one piece behind its key."""
    lines: list[str] = []
    for line in text.splitlines():
        more = re.fullmatch(r" +# (.*)", line)
        if more:
            lines[-1] += f" {more[1]}" if " # " in lines[-1] else f" # {more[1]}"
        else:
            lines.append(re.sub(r" +", " ", line).strip())
    return lines


@pytest.mark.parametrize(
    "words",
    [
        [],
        *([option] for option in OPTIONS),
        ["experiment=debug", "loss.tau=2", "optimizer.lr=1e-5"],
        [f"data.root='/a folder/{'whose name has many words ' * 5}'"],
        ["+more=[{a: 1}, {b: [2, 3]}]"],
        ["+more=['a,b', 'c: d', '', '1', null, {}]"],
    ],
)
def test_the_keys_are_those_that_hydra_composes(words: list[str]) -> None:
    """Read as YAML, the page is the configuration: names, values and order; without Hydra, and with each option."""
    shown, expected = OmegaConf.create(keys(page(*words))), composed(*words)
    shown.pop("hydra", None)
    assert shown == expected
    assert list(shown) == list(expected)


def test_a_sweep_shows_what_its_sweeper_takes() -> None:
    """Only there: elsewhere Hydra's own keys are left out."""
    sweeper = OmegaConf.create(keys(page("sweep=alpha_tau"))).hydra.sweeper
    assert sweeper.params["loss.tau"] == "tag(log, interval(1.0, 20.0))"
    assert "hydra:" not in keys(page("data=digits"))


@pytest.mark.parametrize(
    "words", [["sweep=alpha_tau", "loss.alpha=interval(0, 1)"], ["-m", "loss.alpha=0.1,0.2", "loss=kd,ce"]]
)
def test_values_to_sweep_over_are_no_values_yet(words: list[str]) -> None:
    """The page of a study's command shows the key as it is without them."""
    assert OmegaConf.create(keys(page(*words))).loss.alpha == 0.5


def test_help_alone_doesnt_need_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the defaults are enough; with other words it composes."""

    def refuse(*_: object) -> None:
        raise AssertionError("composed")

    monkeypatch.setattr(help_page, "_composed", refuse)
    assert "loss:" in help_page.page(CONFIG_FOLDER, ["--help"])
    with pytest.raises(AssertionError, match="composed"):
        help_page.page(CONFIG_FOLDER, ["--help", "sweep=demo"])


@pytest.mark.parametrize(
    ("words", "key", "comment"),
    [
        ([], "alpha: 0.5", "share of the distillation term, in [0, 1]; 0 is cross-entropy"),
        ([], "teacher:", "null: no teacher (teacher=none)"),
        ([], DECAYS, "the one with the lowest validation NLL is kept"),
        (["data=digits"], "flip: false", "a mirrored digit is another sign"),
        (["sweep=alpha_tau"], "n_trials: 30", "settings of (alpha, tau) that are tried"),
        # Of a file that another one builds on.
        (["sweep=demo"], "max_restarts: 3", "how often a run whose process was killed is started again"),
        (
            ["sweep=demo"],
            "storage: null",
            "where Optuna's record is kept; null: SQLite in the study's folder; postgresql://... for several hosts",
        ),
        # What it means, not why another value was chosen there.
        (["sweep=demo"], "threads: 1", "CPU threads; null: all cores. Results depend on it in the last bits"),
        (["experiment=debug"], "image_size: 32", "side in pixels"),
    ],
)
def test_a_key_has_its_comment(words: list[str], key: str, comment: str) -> None:
    """Behind its value, and on lines of its own where it is long."""
    assert f"{key} # {comment}" in joined(page(*words))


@pytest.mark.parametrize("words", [[], *([option] for option in OPTIONS if not option.startswith("sweep="))])
def test_every_key_is_explained(words: list[str]) -> None:
    """By a comment; but for what names a component, and keys that only hold others."""
    lines = joined(page(*words))
    shown = lines[lines.index("Configuration (key=value):") + 2 : lines.index(next(filter(ENVIRONMENT, lines))) - 1]
    assert len(shown) > 40
    silent = [line for line in shown if " # " not in line and not re.match(r"_\w+_:|\w+:$", line)]
    assert silent == []


def test_it_marks_what_is_chosen() -> None:
    """One option of each group, by the words and what they choose in turn."""
    assert "  loss        ce, dist, dkd, dkd_warmup, feature, kd*, kd_scheduled," in page()
    text = page("experiment=scratch")
    assert "  loss        ce*, dist, dkd, dkd_warmup, feature, kd, kd_scheduled," in text
    assert "  teacher     efficientnet_lite0, members, none*, own, random, resnet34_scratch," in text


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No comment makes a line too long."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert [line for line in keys(page()).splitlines() if "  # " in line and len(line) > columns] == []


def test_words_that_cant_be_composed_are_refused() -> None:
    """As they are without --help."""
    with pytest.raises(HydraException, match="alhpa"):
        page("loss.alhpa=1")


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["--help"], True),
        (["-h", "sweep=demo"], True),
        (["loss.tau=2"], False),
        (["--hydra-help"], False),
        (["--help", "--config-dir", "mine"], False),
        (["--help", "hydra.searchpath=[file:///mine]"], False),
        (["--help", "-m", "loss.tau=2,4"], True),
    ],
)
def test_hydras_own_flags_are_left_to_hydra(words: list[str], ours: bool) -> None:
    """They may change where the configuration lies."""
    assert help_page.answers(words) is ours


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And runs nothing."""
    monkeypatch.setattr("sys.argv", ["kdsweep", "loss=ce", "--help"])
    train.main()
    assert capsys.readouterr().out == page("loss=ce") + "\n"
