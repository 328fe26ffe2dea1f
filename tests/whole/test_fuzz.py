"""Claims about any value whatever in the configuration: it is taken, or refused in one line, and nothing else happens.

By hand, for minutes: `KDSWEEP_FUZZ=3000 pytest tests/test_fuzz.py` draws as many values, other ones each time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from kdsweep.config import build, checks, rules
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.system import exit_status
from kdsweep.system.errors import UserError, one_line

pytestmark = [pytest.mark.slow, pytest.mark.all]

N_EXAMPLES = int(os.environ.get("KDSWEEP_FUZZ", "0"))
TINY = ["experiment=debug", "data.n_train=48", "data.val_size=16", "data.n_test=16", "threads=1", "batch_size=16"]
# Groups beside the debug experiment's own; what they hold is fuzzed too.
VARIANTS = ([], ["optimizer=adamw", "schedule=cosine"], ["loss=label_smoothing", "schedule=constant", "teacher=none"])

# Longer than this a check must not take; a busy machine takes several times as long as a quiet one.
DEADLINE_MS = 20_000

SPECIAL = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 0.5, 1e-320, 1e308, 2**31, 2**63 - 1, 2**63, 10**40, -(10**40)),
        *(
            float("nan"),
            float("inf"),
            -float("inf"),
            "",
            ".",
            "..",
            "/dev/null",
            "../../x",
            "~",
            "\0",
            "a\nb",
            "x" * 5000,
        ),
        *(
            "cpu",
            "auto",
            "null",
            "nan",
            "1",
            "${seed}",
            "${nothing}",
            "???",
            "<script>",
            "pkg://a/b.pth",
            "sqlite:///x",
        ),
        *([], {}, [0, 0, 0], [0.5, 0.5, 0.5], ["a"], [[1]], {"a": 1}, {"_target_": "os.system"}, {"_target_": None}),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = SPECIAL | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[DictConfig]]:
    """Small configurations, in a working directory of their own."""
    monkeypatch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("fuzz") / "root"
    root.mkdir()
    # A thousand threads are a right value, and not what is tried here.
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    before = Path.cwd()
    os.chdir(root)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER)):
        yield [compose("config", [*TINY, f"paths.root={root}", *variant]) for variant in VARIANTS]
    os.chdir(before)
    monkeypatch.undo()


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """The keys of all values of a configuration, those of its groups, and of its lists as a whole."""
    for key in node:
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(node._get_node(key)):
            yield from leaves(node[key], f"{prefix}{key}.")


def refused(cfg: DictConfig) -> str | None:
    """What a run would be refused with, by what it checks and builds before it opens its MLflow run; None if it isn't.

    Raises:
        Exception: What no command makes one line of.
    """
    try:
        own = rules.settled(cfg)
        checks.check(own)
        build.rehearse(own)
    except Exception as error:
        known = exit_status.explained(error)
        if known is None:
            raise
        assert isinstance(known, UserError), known
        return one_line(known)
    return None


def _set(cfg: DictConfig, key: str, value: object) -> DictConfig | None:
    """A copy with a value; None where OmegaConf itself doesn't take it, as for a value of "${"."""
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    try:
        OmegaConf.update(own, key, value, merge=False)
    except Exception as error:
        if exit_status.explained(error) is None:
            raise
        return None
    return own


def _outside(configs: list[DictConfig]) -> set[str]:
    """What lies beside the root."""
    return {path.name for path in Path(configs[0].paths.root).parent.iterdir()}


@settings(
    max_examples=N_EXAMPLES or 150,
    derandomize=N_EXAMPLES == 0,
    deadline=DEADLINE_MS,
    database=None,
    phases=[Phase.explicit, Phase.generate] if N_EXAMPLES == 0 else list(Phase),
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_any_value_is_taken_or_refused_in_one_line(configs: list[DictConfig], data: st.DataObject) -> None:
    """One or two keys with any values: no other exception, no endless work, no file outside of the root."""
    cfg: DictConfig | None = data.draw(st.sampled_from(configs))
    assert cfg is not None
    keys = sorted({key for key in leaves(cfg) if not key.startswith("hydra")})
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2, unique=True)):
        value = data.draw(VALUES, label=key)
        # The first may have replaced the group of the second.
        if cfg is not None and ("." not in key or OmegaConf.is_dict(OmegaConf.select(cfg, key.rpartition(".")[0]))):
            cfg = _set(cfg, key, value)
    if cfg is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line = refused(cfg)
    assert line is None or ("\n" not in line and line.strip())
    assert _outside(configs) == {"root"}


@example(text="loss.alpha=0.3")
@example(text="=")
@example(text="loss.alpha=${")
@example(text="~")
@settings(
    max_examples=N_EXAMPLES or 150,
    derandomize=N_EXAMPLES == 0,
    deadline=DEADLINE_MS,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(text=st.text(max_size=30) | st.from_regex(r"[+~]{0,2}[a-z_.@/:]{0,12}=[\[\]{}(),:$'\"\\a-z0-9. ]{0,12}"))
def test_any_word_is_read_or_refused_in_one_line(configs: list[DictConfig], text: str) -> None:
    """What is typed behind `kdsweep`: Hydra composes a configuration of it, or its error becomes one line."""
    try:
        compose("config", [*TINY, text])
    except Exception as error:
        known = exit_status.explained(error)
        if known is None:
            raise
        line = one_line(known)
        assert "\n" not in line
        assert line.strip()
