"""States the conditions of a study: what was trained on which data and how, on which machine, and by which commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsweep.analysis.environment_diff import HASH_SHOWN
from kdsweep.analysis.study_goals import short_key
from kdsweep.config.keys import member_groups, network_name, teacher_name
from kdsweep.report.tables import Table
from kdsweep.tracking.run_records import SHORT_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kdsweep.analysis.findings import Report
    from kdsweep.analysis.study_goals import Dimension, Goals

# Packages whose versions the table states; environment.json of each run has them all.
PACKAGES = ("torch", "torchvision", "timm", "optuna", "mlflow")


# How much of a teacher was trained, in words, where it was more than its head.
TRAINED = {"all": "trained on as a whole", "scratch": "trained from scratch"}


def conditions(report: Report) -> Table:
    """Makes the table of conditions: a name and what it was. Values in which runs differ are listed."""
    return Table(("condition", "what it was"), tuple(_rows(report)), named=True)


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    study, around = report.study, report.comparison.readings.environment
    params = [run.params for run in study.children]
    students = [own for own in params if own.get("arm") != "teacher"]
    if students:
        yield "student", _network(students, "model")
    if any(teacher_name(own) != "None" for own in params):
        yield "teacher", _teacher(params)
    if params:
        yield "data", _data(report, params)
        yield "augmentation", _augmentation(params)
    if students:
        yield "training", _training(students)
    goals = report.comparison.goals
    if len(goals.requests) > 1:
        for number, request in enumerate(goals.requests):
            asked = ", ".join(f"{short_key(name)} {value}" for name, value in request.asked.items())
            yield f"{'asked' if number == 0 else 'changed'} {request.when[:16].replace('T', ' ')} UTC", asked
    if goals.space:
        objectives = ", ".join(objective.label for objective in goals.objectives)
        trials = "" if goals.n_trials is None else f"{goals.n_trials} trials{_repeats(goals)} over "
        length = "" if goals.fidelity is None else f"; its runs have {goals.fidelity.searched}"
        yield "search", f"{trials}{', '.join(map(_dimension, goals.space))}; by {objectives}{length}"
    if around or params:
        yield "machine", _machine(params, around)
    if around:
        yield "versions", _versions(around)
    if "kdsweep.command" in study.parent.tags:
        yield "command", study.parent.tags["kdsweep.command"]
    if params:
        yield "this report", f"kdsweep-report {study.parent.short_id}"


def _repeats(goals: Goals) -> str:
    """Says how often settings were to be run, where that is more than once."""
    parts = [f"{goals.replicates} for each setting"] if goals.replicates > 1 else []
    parts += [f"{goals.race} for those that could still be the best"] if goals.race else []
    return f" ({', '.join(parts)})" if parts else ""


def _values(params: Iterable[Mapping[str, str]], key: str) -> str:
    """Returns the values of a key, of which there is mostly one; "" if no run has the key."""
    values = dict.fromkeys(own[key] for own in params if own.get(key, "None") != "None")
    return ", ".join(values)


def _teacher(params: Sequence[Mapping[str, str]]) -> str:
    """Names the teacher, or the members of an average, each with how it was trained."""
    members = member_groups(params)
    if not members:
        return _one_teacher(params, "teacher")
    each = "; ".join(_one_teacher(params, member) for member in members)
    return f"average of the {_values(params, 'teacher.average')} of {len(members)}: {each}"


def _one_teacher(params: Sequence[Mapping[str, str]], group: str) -> str:
    """Names a teacher that is one network: what it was built from, or the run whose student it is."""
    run, name = _values(params, f"{group}.run"), _values(params, f"{group}.run_name")
    trained = TRAINED.get(_values(params, f"{group}.train"))
    if not run:
        how = f", {trained} for {_values(params, f'{group}.training.epochs')} epochs" if trained else ""
        return f"{_network(params, f'{group}.network')}{how}"
    stem = _values(params, f"{group}.network.stem")
    found = (network_name(own, f"{group}.network") for own in params)
    network = ", ".join(one for one in dict.fromkeys(found) if one != "None")
    return f"{network}{f', {stem} stem' if stem == 'cifar' else ''}, the student of the run {run[:SHORT_ID]} ({name})"


def _network(params: Iterable[Mapping[str, str]], group: str) -> str:
    params = list(params)
    names = dict.fromkeys(name for own in params if (name := network_name(own, group)) != "None")
    # A teacher that a run lists beside other networks isn't described by one weights file.
    parts = [", ".join(names)]
    weights = _values(params, f"{group}.weights")
    parts.append(f"weights {weights.rpartition('/')[2]}" if weights else "random initialisation")
    for key, words in (("stem", "{} stem"), ("input_size", "at {} px"), ("freeze", "frozen: {}")):
        value = _values(params, f"{group}.{key}")
        if value and value not in ("none", "imagenet"):  # the usual stem goes without saying
            parts.append(words.format(value))
    return ", ".join(parts)


def _data(report: Report, params: Sequence[Mapping[str, str]]) -> str:
    name = _values(params, "data._target_").replace("kdsweep.data.", "")
    splits = next((run.splits for run in reversed(report.study.children) if run.splits), {})
    counts = [f"{count:,} {split}" for split, count in splits.items()]
    counts[-1:] = [f"{count} pictures" for count in counts[-1:]]
    classes = next((len(rows) for rows in report.comparison.readings.classes.values()), None)
    parts = [name or "-", *([f"{classes} classes"] if classes else []), *counts]
    fraction = _values(params, "data.train_fraction")
    return ", ".join(parts) + (f"; train_fraction {fraction}" if fraction else "")


def _augmentation(params: Sequence[Mapping[str, str]]) -> str:
    padding, flip = _values(params, "data.padding"), _values(params, "data.flip")
    parts = [f"random crop with a padding of {padding} px"] if padding not in ("", "0") else []
    parts += {"True": ["random horizontal flip"], "False": ["no flip"]}.get(flip, [f"flip {flip}"] if flip else [])
    passes = _values(params, "n_passes")
    return ", ".join([*(parts or ["none"]), *([f"{passes} views of each picture"] if passes else [])])


def _training(params: Sequence[Mapping[str, str]]) -> str:
    epochs = _values(params, "epochs")
    parts = [f"{epochs} {'epoch' if epochs == '1' else 'epochs'}", f"batches of {_values(params, 'batch_size')}"]
    optimizer = _values(params, "optimizer._target_").replace("torch.optim.", "")
    settings = [
        f"{words} {value}"
        for key, words in (("lr", "rate"), ("momentum", "momentum"), ("weight_decay", "weight decay"))
        if (value := _values(params, f"optimizer.{key}"))
    ]
    parts.append(" ".join([optimizer, *([f"({', '.join(settings)})"] if settings else [])]).strip())
    schedule = _values(params, "schedule._target_").replace("kdsweep.schedules.", "").replace("_", "-")
    warmup = _values(params, "schedule.warmup")
    parts += [f"{schedule} schedule" + (f" with a warm-up of {warmup}" if warmup else "")] if schedule else []
    return ", ".join(part for part in parts if part)


def _dimension(dimension: Dimension) -> str:
    name = short_key(dimension.key)
    if dimension.choices:
        return f"{name} in {', '.join(dimension.choices)}"
    return f"{name} {dimension.low:g} to {dimension.high:g}{' (logarithmic)' if dimension.log else ''}"


def _machine(params: Sequence[Mapping[str, str]], around: Mapping[str, object]) -> str:
    told = [around.get("gpu") or around.get("cpu"), f"device {_values(params, 'runtime.device') or '-'}"]
    for key, words in (("precision", "{}"), ("threads", "{} threads a run")):
        value = _values(params, f"runtime.{key}")
        told.append(words.format(value) if value else None)
    told.append("deterministic" if _values(params, "deterministic") == "True" else None)
    return ", ".join(str(part) for part in told if part).replace(" 1 threads", " 1 thread")


def _versions(around: Mapping[str, object]) -> str:
    packages = around.get("packages")
    known = packages if isinstance(packages, dict) else {}
    parts = [f"kdsweep {around.get('kdsweep', '-')}", f"Python {around.get('python', '-')}"]
    parts += [f"{name} {known[name]}" for name in PACKAGES if name in known]
    commit = around.get("git_commit")
    if commit:
        parts.append(f"commit {str(commit)[:HASH_SHOWN]}{' with changes' if around.get('git_dirty') else ''}")
    return ", ".join(parts)
