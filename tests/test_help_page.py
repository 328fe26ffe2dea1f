"""Claims about `kdsweep --help`: what it shows is what Hydra composes, with the comments of the YAML files."""

from __future__ import annotations

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kdsweep import help_page, train
from kdsweep.train import CONFIG_FOLDER

OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONFIG_FOLDER.glob("*/*.yaml"))
    if path.parent != CONFIG_FOLDER / "hydra"
]

# A value that leaves no room for its comment.
DECAYS = "weight_decays: [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")


def page(*words: str) -> str:
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


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER)):
        config = compose("config", [*words])
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


@pytest.mark.parametrize("words", [[], *([option] for option in OPTIONS), ["experiment=debug", "loss.tau=2"]])
def test_the_keys_are_those_that_hydra_composes(words: list[str]) -> None:
    """Read as YAML, the page is the configuration: names, values and order; without Hydra, and with each option."""
    shown, expected = OmegaConf.create(keys(page(*words))), composed(*words)
    assert shown == expected
    assert list(shown) == list(expected)


def test_help_alone_doesnt_need_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the defaults are enough; where an option of theirs chose others, they wouldn't be."""

    def refuse(*_: object) -> None:
        raise AssertionError("composed")

    monkeypatch.setattr(help_page, "_composed", refuse)
    assert "loss:" in page()
    with pytest.raises(AssertionError, match="composed"):
        page("sweep=demo")


@pytest.mark.parametrize(
    ("words", "key", "comment"),
    [
        ([], "alpha: 0.5", "share of the distillation term, in [0, 1]; 0 is cross-entropy"),
        ([], "teacher:", "null: no teacher (teacher=none)"),
        ([], DECAYS, "the one with the lowest validation NLL is kept"),
        (["data=digits"], "flip: false", "a mirrored digit is another sign"),
        (["sweep=alpha_tau"], "n_trials: 30", "settings of (alpha, tau) that are tried"),
        # Of a file that another one builds on, and of the one that says it anew.
        (["sweep=demo"], "max_restarts: 3", "how often a run whose process was killed is started again"),
        (["teacher=random"], "weights: null", "random"),
    ],
)
def test_a_key_has_its_comment(words: list[str], key: str, comment: str) -> None:
    """Behind its value, and on lines of its own where it is long."""
    assert f"{key} # {comment}" in joined(page(*words))


def test_no_comment_of_the_defaults_is_missing() -> None:
    """Each comment behind a key of config.yaml is on the page, but for Hydra's own part and what is filled later."""
    own = (CONFIG_FOLDER / "config.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
    written = re.findall(r"^ *\w+:(?! null +# filled).* # (.*)$", own, re.MULTILINE)
    shown = [line.partition(" # ")[2] for line in joined(page())]
    assert len(written) > 25
    assert [comment for comment in written if comment not in shown] == []


def test_it_marks_what_is_chosen() -> None:
    """One option of each group, by the words and what they choose in turn."""
    assert "  loss        ce, kd*, label_smoothing\n" in page()
    text = page("experiment=scratch")
    assert "  loss        ce*, kd, label_smoothing\n" in text
    assert "  teacher     efficientnet_lite0, none*, random, resnet50_imagenet\n" in text


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
