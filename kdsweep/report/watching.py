"""Shows a study in the terminal while it runs, from the store alone, and keeps its page up to date."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdsweep.analysis.progress_now import Progress, progress
from kdsweep.analysis.sorted_runs import arm_label
from kdsweep.analysis.study_goals import setting
from kdsweep.report import html
from kdsweep.report.console import WIDTH
from kdsweep.system.processes import parse_process
from kdsweep.tracking.run_records import PROCESS

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from kdsweep.analysis.findings import Report
    from kdsweep.tracking.run_records import RunRecord, StudyRecord
    from kdsweep.tracking.store import Store

SECONDS = 2.0  # between two looks at the store
RELOAD_SECONDS = 30  # between two looks of an open page at its file


def watch(store: Store, study_id: str, out: Path, every: float = SECONDS) -> None:
    """Shows a study until it ends, or until Ctrl-C, which ends the watching alone.

    Args:
        store: The MLflow store.
        study_id: The id of the study's own run.
        out: The folder of `report.html`, which is written again whenever a run has ended.
        every: Seconds between two looks.
    """
    from kdsweep.analysis.findings import summarise
    from kdsweep.report.writing import readings

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    seen: object = None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while True:
                study = store.study(study_id)
                state = [(run.id, run.status) for run in study.children], study.parent.status, study.parent.tags
                if state != seen:
                    report = summarise(study, readings(store, study))
                    _write_page(report, store, out)
                epochs = {run.id: _epoch(store, run) for run in study.runs(status="RUNNING")}
                shown = render(report, progress(study, report.comparison.goals), epochs, out)
                if console.is_terminal:
                    live.update(shown, refresh=True)
                elif state != seen:
                    console.print(shown)
                seen = state
                if not goes_on(study):
                    return
                time.sleep(every)
        except KeyboardInterrupt:
            console.print("The study goes on; this was only its view.")


def goes_on(study: StudyRecord) -> bool:
    """Returns whether a study runs, as far as one can tell from here: one on another machine is believed."""
    text = study.parent.tags.get(PROCESS)
    process = None if text is None else parse_process(text)
    dead = process is not None and process.is_here and not process.lives()
    return study.parent.status == "RUNNING" and not dead


def _write_page(report: Report, store: Store, out: Path) -> None:
    """Writes the page, which loads itself again while the study runs."""
    from kdsweep.report.figures import all_figures

    out.mkdir(parents=True, exist_ok=True)
    reload_seconds = RELOAD_SECONDS if goes_on(report.study) else None
    page = html.render(report, list(all_figures.charts(report)), lambda run: store.page_of(run.id), reload_seconds)
    fresh = out / "report.html.new"
    fresh.write_text(page, encoding="utf-8")
    fresh.replace(out / "report.html")  # a browser that loads it now gets the old one or the new one, whole


def _epoch(store: Store, run: RunRecord) -> int | None:
    history = store.history(run.id, "val/accuracy") if run.arm != "teacher" else []
    return max((epoch for epoch, _ in history), default=None)


def render(report: Report, now: Progress, epochs: dict[str, int | None], out: Path) -> RenderableType:
    """Returns what is shown of a study at one moment.

    Args:
        report: What it has found so far.
        now: Where it is.
        epochs: The id of each running run, and the epoch that it has ended last.
        out: The folder of the page.
    """
    name, running = report.study.parent.name, goes_on(report.study)
    rows = Table.grid(padding=(0, 2))
    for stage in now.stages:
        total = stage.planned
        bar = ProgressBar(total=total, completed=stage.done, width=30) if total else Text("")
        most = "at most " if stage.at_most else ""
        rows.add_row(stage.name, bar, f"{stage.done} of {most}{total}" if total is not None else str(stage.done))
    lines: list[RenderableType] = [Text(f"Study {name}{_state(now, running)}", style="bold"), rows]
    best = _best(report, now)
    if best:
        lines.append(Text(best))
    lines += [Text(line) for line in _answer(report)]
    lines += [Text(f"  {_run(run, epochs.get(run.id))}") for run in now.running if running]
    lines.append(Text(f"Page: {out / 'report.html'}"))
    return Group(*lines)


def _state(now: Progress, running: bool) -> str:
    if not running:
        return (
            ": ended" if not any(stage.left for stage in now.stages) else ": not running; its command goes on with it"
        )
    if now.seconds_left is None:
        return ""
    minutes = now.seconds_left / 60
    most = "at most " if now.at_most else ""
    return f": {most}about {minutes:.1f} min left" if minutes < 90 else f": {most}about {minutes / 60:.1f} h left"


def _best(report: Report, now: Progress) -> str:
    """Says which trial is the best so far, and how far luck alone may have carried it."""
    found, objective = report.comparison, report.comparison.goals.objective
    trials = [trial for trial in report.trials if found.searched(trial)]
    if not trials:
        return ""
    best = trials[0]
    noise = report.verdict.validation_noise
    failed = f"; {now.failed} failed" if now.failed else ""
    tried = f"Best of {len(trials)} trial{'s' * (len(trials) > 1)}{failed}"
    text = f"{tried}: {objective.label} {objective.shown(best.value)}{objective.row.unit}"
    if noise is not None:
        sd = noise.sd / math.sqrt(len(best.runs))
        low, high = (objective.shown(best.value + side * 1.96 * sd) for side in (-1, 1))
        text += f" ({low} to {high} by the noise over seeds, 95%)"
    return f"{text}, trial {best.number} ({setting(best.params)})"


def _answer(report: Report) -> list[str]:
    """Says how the confirmation stands."""
    lines = []
    for paired in () if report.verdict.nothing_learned else report.verdict.comparisons:
        low, high = 100 * paired.difference.low, 100 * paired.difference.high
        interval = "" if low != low else f" ({low:+.2f} to {high:+.2f}), {paired.outcome}"
        pairs = f"{paired.difference.n} {'pair' if paired.difference.n == 1 else 'pairs'}"
        names = f"{arm_label(paired.first)} - {arm_label(paired.second)}"
        lines.append(f"{names}: {100 * paired.difference.mean:+.2f} points on test{interval}, {pairs}")
    if lines and not report.verdict.at_any_time and goes_on(report.study):
        lines.append("This is a look in the middle: with a fixed number of seeds only the last one counts.")
    return lines


def _run(run: RunRecord, epoch: int | None) -> str:
    text = run.tags.get(PROCESS)
    process = None if text is None else parse_process(text)
    where = "" if process is None else f", process {process.pid} on {process.host}"
    epochs = run.params.get("epochs")
    done = "" if epoch is None else f", epoch {epoch}{'' if epochs is None else f' of {epochs}'}"
    return f"{run.tags.get('kdsweep.job', run.name)}{done}{where}"
