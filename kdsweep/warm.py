"""Imported last by the server that workers are forked from: sets up what Hydra would set up in each of them.

Its plug-ins, the tables of its parsers, a first composition: a worker that inherits them starts in half of the time.
"""

from __future__ import annotations

import gc
from contextlib import suppress

from hydra import compose, initialize_config_dir

from kdsweep.train import CONFIG_FOLDER

# What is wrong with a configuration is for the job to say.
with suppress(Exception), initialize_config_dir(str(CONFIG_FOLDER)):
    compose("config", ["seed=0"])

# A collection would write into every object, and so copy all the pages that a worker shares with the server.
gc.collect()
gc.freeze()
