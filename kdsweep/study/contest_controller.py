"""The controller of a contest: a study of several contenders, each with a search of its own, below one MLflow run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from kdsweep import recording
from kdsweep.analysis.contest_findings import AMOUNTS
from kdsweep.analysis.contest_plan import Plan, search_name, texts
from kdsweep.config import build, checks, keys, recorded_teachers, rules, trained_teachers
from kdsweep.config.overrides import kept_beside, override_line, parsed
from kdsweep.config.unread import require_read
from kdsweep.execution.executors import ray_cluster
from kdsweep.execution.trial_link import storage_url
from kdsweep.study import choosing, contest, two_records
from kdsweep.study.controller import Study, beside, only_controller, space_lines, stopped
from kdsweep.study.measure_speed import measure
from kdsweep.study.search import Search, Space, delete, settings_by_option, space_of
from kdsweep.study.stages import Stages
from kdsweep.system.errors import require
from kdsweep.system.masking import masked_text
from kdsweep.system.progress import note
from kdsweep.tracking import sending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hydra.core.override_parser.types import Override

# The arguments that a study with one search doesn't have.
OF_CONTESTS = ("define", "for_all", "against", "grid")


def study_of(*, contenders: Sequence[str], **arguments: Any) -> Study:
    """Makes the sweeper: a contest if there are contenders, or else a study with one search.

    Args:
        contenders: The names of those that compete.
        **arguments: The others of `ContestStudy`.
    """
    if contenders:
        return ContestStudy(contenders=contenders, **arguments)
    return Study(**{name: value for name, value in arguments.items() if name not in OF_CONTESTS})


class ContestStudy(Study):
    """A sweeper that lets contenders compete: a search for each that has something to search, then fresh seeds of all.

    Args:
        contenders: The names of those that compete.
        define: Name -> the contender's lines, as on the command line.
        for_all: Lines that hold for all contenders, unless their own say otherwise.
        against: The contenders with which each other one is compared.
        grid: Key -> values; each contender has fresh seeds under each combination.
        **study: The arguments of `Study`.
    """

    def __init__(
        self,
        *,
        contenders: Sequence[str],
        define: Mapping[str, Sequence[str]],
        for_all: Sequence[str],
        against: Sequence[str],
        grid: Mapping[str, Sequence[object]],
        **study: Any,
    ) -> None:
        super().__init__(**study)
        self._contenders, self._for_all, self._against = list(contenders), list(for_all), list(against)
        self._define = {name: list(lines) for name, lines in define.items()}
        self._grid = {key: list(values) for key, values in grid.items()}

    def _hold(self, overrides: list[Override], objectives: list[str], directions: list[str]) -> None:
        loader = self.hydra_context.config_loader
        entered = contest.contenders(self._contenders, self._define, self._for_all, overrides, loader)
        self._check_contest(entered, overrides)
        spaces = {}
        for entrant in entered:
            with beside(_words_of(entrant)):
                own = loader.load_sweep_config(self.config, entrant.common)
                spaces[entrant.name] = space_of(self._exact(entrant.searched, own))
        plan = Plan(
            {entrant.name: entrant.lines for entrant in entered},
            self._against,
            texts(self._grid),
            {name: [key.lstrip("+") for key in space] for name, space in spaces.items() if space},
            {},
            self._confirm_seeds,
        )
        for entrant in entered:
            with beside(_words_of(entrant)):
                self._check_repeats(spaces[entrant.name])
                self._check_entrant(entrant, spaces[entrant.name], plan)
        folder, url = Path(self.sweep_dir), storage_url(self.storage, self.sweep_dir)
        name = str(self.study_name)

        def search_of(study: str, space: Space) -> Search:
            n_trials = self.n_trials if space else 0
            # Without a space nothing is asked of a sampler.
            sampler = self.sampler if space else OmegaConf.create({"_target_": "optuna.samplers.RandomSampler"})
            limits_, extend, seed = self._max_restarts, self._extender(), self._sampler_seed
            again = self._replicates, self._race
            return Search(url, study, directions, space, sampler, self._pruner, n_trials, limits_, extend, seed, *again)

        with only_controller(folder, name):
            if self._restart == "fresh":
                for study in (name, *(search_name(name, entrant) for entrant in self._define)):
                    delete(url, study)
            main = search_of(name, {})
            with main.held():
                common = [override for override in overrides if not override.is_sweep_override()]
                main.require_same({**self._conditions([]), "directions": directions})
                searches = {}
                for entrant in entered:
                    own_search = search_of(search_name(name, entrant.name), spaces[entrant.name])
                    own_search.require_same({"contender": list(entrant.fixed), **space_lines(entrant.searched)})
                    if spaces[entrant.name]:
                        searches[entrant.name] = own_search
                self._run_contest(main, searches, entered, plan, common, list(zip(objectives, directions, strict=True)))

    def _check_contest(self, entered: Sequence[contest.Contender], overrides: Sequence[Override]) -> None:
        """Refuses a contest whose parts don't fit each other."""
        for key, value in (
            ("start", self._start),
            ("start_from", self._start_from),
            ("fidelity", self._fidelity),
        ):
            remedy = "It belongs to a study with one search."
            require(value is None, f"{key} is null in a study of contenders", value, f"sweep.{key}", remedy)
        if len(self._grid) == 1 and next(iter(self._grid)) in AMOUNTS:
            rule = "confirm_until is null where pictures or epochs are compared"
            remedy = "What is saved has no interval that holds at any look: set sweep.confirm_seeds."
            require(self._confirm_until is None, rule, self._confirm_until, "sweep.confirm_until", remedy)
        chosen_controls = [name for name, arm in self._baselines.items() if arm.control and arm.as_chosen]
        rule, remedy = "no control has the chosen setting in a study of contenders", "Let it compete: sweep.contenders."
        require(not chosen_controls, rule, ", ".join(chosen_controls), "sweep.shuffled", remedy)
        names = [entrant.name for entrant in entered]
        require(len(names) > 1, "two contenders at least", ", ".join(names), "sweep.contenders")
        for name in self._against:
            require(name in names, f"against in ({', '.join(names)})", name, "sweep.against")
        rule = "all contenders are compared with at least one of them"
        require(len(self._against) > 0, rule, self._against, "sweep.against")
        set_alone = {override.key_or_group for override in overrides}
        slugs = [condition.slug for condition in Plan({}, [], texts(self._grid), {}, {}, 0).conditions]
        rule = "the conditions of a grid have different names"
        require(len(set(slugs)) == len(slugs), rule, ", ".join(slugs), "hydra.sweeper.grid")
        for key, values in self._grid.items():
            require(len(values) > 0, "a grid's key has values", values, key)
            require(keys.may_be_searched(key), "one value for all runs", values, key)
            remedy = "Leave it out of the command: the grid sets it."
            require(key not in set_alone, "a key is fixed or in the grid", key, key, remedy)
            for entrant in entered:
                own = {line.partition("=")[0].lstrip("+") for line in entrant.fixed}
                own |= {override.key_or_group for override in entrant.searched}
                remedy = f"The contender {entrant.name} sets it, and so does the grid."
                require(key not in own, "a key is a contender's or the grid's", key, key, remedy)

    def _check_entrant(self, entrant: contest.Contender, space: Space, plan: Plan) -> None:
        """Refuses a contender whose runs can't be built as configured, under any of the conditions."""
        loader = self.hydra_context.config_loader
        first = next(iter(settings_by_option(space, [])), None) if space else None
        setting = [] if first is None else first.overrides
        base = [*kept_beside(setting, parsed(entrant.common, loader), whole_groups=False), *setting]
        for condition in plan.conditions:
            place = [override_line(key, value) for key, value in condition.values.items()]
            lines = [*kept_beside(place, parsed(base, loader), whole_groups=False), *place]
            config = loader.load_sweep_config(self.config, lines)
            require_read(config, config.hydra)
            checks.check(rules.settled(config))
            if condition is plan.conditions[0]:
                self._check_limits(space, config)
                config = recorded_teachers.filled(rules.settled(config))
                build.rehearse(config)
                trained_teachers.rehearse(config)

    def _run_contest(
        self,
        main: Search,
        searches: Mapping[str, Search],
        entered: Sequence[contest.Contender],
        plan: Plan,
        common: Sequence[Override],
        objectives: Sequence[tuple[str, str]],
    ) -> None:
        if self._restart is None:
            two_records.require_store(main, recording.uri_of(self.config))
        store = recording.open_store(self.config)
        sending.send_unsent(store, recording.unsent_folder(self.config))
        known = two_records.study_run(main, store)
        runs = [] if known is None else store.children(known.id)
        for owner, search in searches.items():
            two_records.require_known(search, runs, owner)
        missing = {owner: two_records.without_run(search, runs, owner) for owner, search in searches.items()}
        if self._restart is None:
            two_records.require_same(main, store, known, [trial for trials in missing.values() for trial in trials])
        names = [name for name, _ in objectives]
        with self._parent(store, main, known, self._params([])) as parent:
            main.record_in(masked_text(store.uri))
            threads = [] if self._threads is None else [f"threads={self._threads}"]

            def stages_of(search: Search, lines: Sequence[str], owner: str) -> Stages:
                explicit = any(one.key_or_group in ("sweep.choose", "hydra.sweeper.choose") for one in common)
                return Stages(
                    store,
                    parent.id,
                    search,
                    parsed([*lines], self.hydra_context.config_loader) if owner else common,
                    [*threads],
                    names,
                    {} if owner else self._baselines,
                    0,
                    self._max_restarts,
                    self.max_failure_rate,
                    choosing.rule_in_force(search, self._choose, explicit=explicit) if owner else self._choose,
                    self._search_seeds,
                    owner=owner,
                )

            shared = stages_of(main, [], "")
            lines = {entrant.name: entrant.common for entrant in entered}
            own = {owner: stages_of(search, lines[owner], owner) for owner, search in searches.items()}
            until = self._until(main, known)
            held = contest.Contest(plan, entered, shared, own, until)
            held.look()
            parent.tag({**self._tags(main, objectives, until, held.planned()), "kdsweep.contest": plan.text()})
            parent.tag(stopped(held.stop))
            for owner, trials in missing.items():
                for trial in trials:
                    self._record_again(store, own[owner].trial_job(trial), trial, names)
            anything_left = any(held.left().values())
            if anything_left:
                measured = measure(recorded_teachers.filled(rules.settled(self.config)), self._threads)
                elsewhere = self._executor == "launcher" or (
                    self._executor == "ray" and ray_cluster(self._ray_address) is not None
                )
                held.announce(main.name, measured, self.n_jobs, elsewhere)
            else:
                note(f"Study {main.name}: all {sum(held.planned().values())} runs are done.")
                if known is not None and known.end is not None and known.status == "FINISHED":
                    parent.ends_at(known.end)
            for _ in held.run(self._open_executor(anything_left)):
                parent.tag({"kdsweep.contest": held.plan.text()})
            parent.tag(stopped(held.stop))
        self._report(store, parent.id)


def _words_of(entrant: contest.Contender) -> str:
    return f"the contender {entrant.name} ({' '.join(entrant.lines)})"
