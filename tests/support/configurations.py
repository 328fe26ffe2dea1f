"""Configurations composed as the command composes them; each once in a process, because Hydra takes half a second.

Tests that compose every option of every group belong to the group `compositions`, so that one process runs them.
"""

from __future__ import annotations

import functools

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kdsweep.config.folder import CONFIG_FOLDER


@functools.cache
def composed(*words: str, hydra: bool = False) -> DictConfig:
    """The read-only configuration that a command line stands for, with Hydra's own part where that is asked for."""
    if hydra:
        with initialize_config_dir(str(CONFIG_FOLDER)):
            config = compose("config", list(words), return_hydra_config=True)
    else:
        whole = composed(*words, hydra=True)
        config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        OmegaConf.set_struct(config, True)
    OmegaConf.set_readonly(config, True)
    return config
