"""Claims about keys that nothing reads."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.config.keys import nearest
from kdsweep.config.unread import require_read
from kdsweep.system import exit_status
from kdsweep.system.errors import UserError


def composed(*words: str) -> tuple[DictConfig, DictConfig]:
    """What a job gets, and Hydra's own part."""
    with initialize_config_dir(str(CONFIG_FOLDER)):
        config = compose("config", ["experiment=debug", *words], return_hydra_config=True)
    return config, config.hydra


@pytest.mark.parametrize(
    ("words", "key", "meant"),
    [
        (("+alpha=0.3",), "alpha", "loss.alpha"),
        (("++trainer.max_epochs=3",), "trainer.max_epochs", "epochs"),
        (("+optim={learning_rate: 1, lr: 2}",), "optim.learning_rate", None),
        (("+paths.cahce=x",), "paths.cahce", "paths.cache"),
        (("+teacher.batchsize=3",), "teacher.batchsize", "teacher.batch_size"),
        (("+tracking.uris=3",), "tracking.uris", "tracking.uri"),
        (("+sweep.n_trials=3",), "sweep.n_trials", None),
        (("sweep=alpha_tau", "+sweep.n_trial=3"), "sweep.n_trial", "sweep.n_trials"),
        (("+runtime.device=cpu",), "runtime.device", "device"),
        # A chain of own keys of which nothing comes, and a part of a living group that the command line adds.
        (("+a=1", "+b=${a}"), "a", None),
        (("+mine.width=8", "+mine.epoch=3", "loss.tau=${mine.width}"), "mine.epoch", "epochs"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(words: tuple[str, ...], key: str, meant: str | None) -> None:
    """The message names the key that is probably meant."""
    with pytest.raises(UserError, match="nothing reads this key") as error:
        require_read(*composed(*words))
    assert error.value.key == key
    assert f"Did you mean {meant}? " in str(error.value) if meant else "Did you mean" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("sweep=demo",),
        ("tracking=null",),  # which is refused for other reasons
        ("+weight=0.3", "loss.alpha=${weight}"),
        ("+mine.width=8", "++model.width=${mine.width}"),
        ("+mine={a: {b: 1}}", "++model.more=${mine}"),
        ("+mine={a: 1, b: '${.a}'}", "loss.tau=${mine.b}"),
        ("+mine={a: {x: 1}, b: '${..mine.a.x}'}", "loss.tau=${mine.b}"),
        ("+taus={distill: 2}", "loss.tau='${taus.${arm}}'"),
        ("+taus={distill: 2}", "loss.tau='${taus[distill]}'"),
        ("+taus=[1,2]", "loss.tau='${taus.1}'"),
        ("+weight=0.3", "loss.alpha='${oc.select:weight,0.5}'"),
        ("+a=1", "+b=${a}", "loss.tau=${b}"),
        ("+mean=0.3", "model.mean=['${mean}',0.4,0.5]"),
        ("+place=x", "hydra.run.dir=${place}/runs"),
        ("+anything=1", "+hydra.callbacks.mine._target_=my.Callback"),
    ],
)
def test_what_is_read_passes(words: tuple[str, ...]) -> None:
    """By a component, by an interpolation of any kind, by Hydra, or by a callback that gets the whole configuration."""
    require_read(*composed(*words))


def test_other_parts_of_a_group_that_is_read_may_stand_in_its_file() -> None:
    """A file may describe more than one network needs."""
    config, hydra = composed("+mine={width: 8, note: 'a file'}", "loss.tau=${mine.width}")
    require_read(config, hydra)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("alpha=0.3", "Did you mean loss.alpha?"),
        ("trainer.max_epochs=3", "Did you mean epochs?"),
        ("optim.lr=1", "Did you mean optimizer.lr?"),
        ("model.wieghts=x", "Did you mean model.weights?"),
        ("hydra.sweeper.max_batch_sizes=1", "Did you mean hydra.sweeper.max_batch_size?"),
        ("sweep.n_trials=3", "add sweep=alpha_tau"),
        # An argument that a component may take, though its file has no value for it.
        ("optimizer.amsgrad=true", "If optimizer._target_ takes it, write +optimizer.amsgrad. `kdsweep"),
        ("optimizer.weight_decy=1", "no such key. Did you mean optimizer.weight_decay? `kdsweep"),
        ("loss.epochs=3", "If loss._target_ takes it, write +loss.epochs. Did you mean epochs?"),
        ("study=3", "no such key. `kdsweep --help`"),  # tracking.study is the study's own
    ],
)
def test_a_key_that_is_not_there_is_refused_with_the_nearest(word: str, meant: str) -> None:
    """Hydra itself names the group with the most similar name, or nothing."""
    with pytest.raises(Exception, match="Could not override") as raised:
        composed(word)
    error = exit_status.explained(raised.value)
    assert isinstance(error, UserError)
    assert error.key == word.partition("=")[0]
    assert meant in str(error)


def test_the_nearest_key_has_the_most_similar_group() -> None:
    """Where several have the same last word."""
    known = ("model.weights", "teacher.network.weights", "weight_decay")
    assert nearest("teacher.weights", known) == "teacher.network.weights"
    assert nearest("weights", known) == "model.weights"
    assert nearest("nothing", known) is None
