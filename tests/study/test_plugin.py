"""Claims about the sweeper as Hydra sees it: kdsweep's study, and nothing for other applications."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.types import HydraContext
from omegaconf import DictConfig

from kdsweep.config.folder import CONFIG_FOLDER


def set_up(config: DictConfig) -> Any:
    """Makes the sweeper of a configuration, as Hydra does for a multirun."""
    context: Any = HydraContext
    return Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=lambda _: None, config=config)


@pytest.mark.parametrize("others", [[], ["+arm=left", "+paths.root=here", "+objective=loss"]])
def test_another_application_is_told_in_one_line(others: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its configuration composes with this sweeper, and then Hydra shows the error's text and no stack trace."""
    folder = tmp_path_factory.mktemp("conf")
    with initialize_config_dir(str(folder), job_name="theirs"):
        config = compose(overrides=["hydra/sweeper=kdsweep", *others], return_hydra_config=True)
    with pytest.raises(CompactHydraException, match=r"kdsweep's own .* but got 'theirs'\. .*=optuna") as raised:
        set_up(config)
    assert "\n" not in str(raised.value)


def test_an_application_with_kdsweeps_configuration_has_the_study() -> None:
    """Whatever its task function is."""
    with initialize_config_dir(str(CONFIG_FOLDER), job_name="theirs"):
        config = compose("config", ["sweep=alpha_tau"], return_hydra_config=True)
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr("kdsweep.study.controller.Study.setup", lambda self, **given: seen.append(given["config"]))
        set_up(config)
    assert seen == [config]
