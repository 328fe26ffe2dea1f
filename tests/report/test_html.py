"""Claims about the HTML page: it holds the report, loads nothing, and has no markup but its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from records import fresh, pruned, record, summary, trial

from kdsweep.analysis.findings import Report
from kdsweep.report.figures.all_figures import charts
from kdsweep.report.html import LIBRARY, render

EMPTY = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """Reads a page: its texts, its open elements, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in EMPTY:
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Outline:
    """Reads a page, and checks that its elements are closed in the right order."""
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return outline


def confirmed() -> Report:
    """A study with a verdict and a pruned trial."""
    runs = [trial(0, 0.5, 4), trial(2, 0.5, 4, val=0.91), pruned(1, 2), record("teacher")]
    return summary(*runs, *fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.92, 0.93, 0.921]))


def test_the_page_tells_what_the_terminal_tells() -> None:
    """It holds the verdict, every finding, and every cell of the table of arms."""
    report = confirmed()
    text = " ".join(read(render(report, [])).text.split())
    for sentence in (report.headline, *report.findings, *report.missing):
        assert sentence in text
    for cell in ("3*", "90.33 ±0.58", "92.37 ±0.55", "Pruned trials", "2 of 10"):
        assert cell in text


@pytest.mark.slow
def test_the_page_loads_nothing() -> None:
    """Figures, their library and its licence are inside; no element has an address, and no button sends anything."""
    report = confirmed()
    page = render(report, list(charts(report)))
    assert read(page).loaded == []
    assert not re.search(r"@import|url\(", page.replace(LIBRARY.read_text(), ""))
    assert "Licensed under the MIT license" in page
    assert len(page.encode()) < 3e6
    (buttons,) = re.findall(r"modeBarButtons: \[\[(.*?)\]\]", page)
    assert set(re.findall(r"\w+", buttons)) == {"toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"}


@pytest.mark.slow
def test_every_panel_has_its_place_and_its_data() -> None:
    """The script finds an element for each panel; colours are variables that the page has, in light and in dark."""
    report = confirmed()
    page = render(report, list(charts(report)))
    (text,) = re.findall(r'<script type="application/json" id="panels">(.*?)</script>', page)
    panels = json.loads(text)
    assert {"differences.png", "history.png"} <= panels.keys()
    for name, own in panels.items():
        assert [f'id="{name}-{place}"' in page for place in range(len(own))] == [True] * len(own)
    for variable in set(re.findall(r"var\((--[\w-]+)\)", text)):
        assert page.count(f"{variable}: ") >= 2


def test_a_trial_tells_its_setting_where_one_points_at_it() -> None:
    """The tooltip has the parameters, the objective, the seed and the run; a pruned trial's says that it was pruned."""
    report = confirmed()
    (history,) = [shown for shown in charts(report) if shown.name == "history.png"] or [None]
    assert history is not None
    notes = [text for trace in history.panels[0].traces for text in trace.get("text", ())]
    assert [note.split("<br>")[:4] for note in notes] == [
        ["trial 0", "alpha 0.5", "tau 4", "validation accuracy 90.00%"],
        ["trial 2", "alpha 0.5", "tau 4", "validation accuracy 91.00%"],
        ["trial 1, pruned", "alpha 0.5", "tau 4"],
    ]


def test_runs_have_links_where_a_server_shows_them() -> None:
    """Seeds stand beside them; without a server there are the first letters of their ids alone."""
    report = confirmed()
    page = render(report, [], lambda run: f"http://host/runs/{run.id}")
    run = report.arms[-1].runs[0]
    assert f'<a href="http://host/runs/{run.id}" target="_blank" rel="noopener">{run.short_id}</a>' in page
    assert "1000, 1001, 1002" in page
    assert "<a href" not in render(report, [])


def test_names_are_escaped() -> None:
    """The name of a study may look like markup."""
    report = confirmed()
    parent = replace(report.study.parent, name="<script>alert(1)</script> & co")
    study = replace(report.study, parent=parent)
    page = render(replace(report, comparison=replace(report.comparison, study=study)), [])
    assert "<script>alert" not in page
    assert "Study <script>alert(1)</script> & co" in read(page).text


def test_the_verdict_has_its_colour() -> None:
    """It depends on distillation against scratch, and is grey without a verdict."""
    assert 'class="verdict better"' in render(confirmed(), [])
    assert 'class="verdict unknown"' in render(summary(), [])
    same = summary(*fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.9, 0.92, 0.9]))
    assert 'class="verdict not-distinguishable"' in render(same, [])


def test_the_chosen_trial_stands_out() -> None:
    """One row of the trials is marked."""
    page = render(summary(trial(0, 0.1, 4), trial(1, 0.5, 4, val=0.95)), [])
    (row,) = re.findall(r'<tr class="marked">(.*?)</tr>', page)
    assert row.startswith("<td>1</td>")


def test_a_page_of_nothing_is_whole() -> None:
    """A study that has just begun has no empty tables and no empty headings."""
    page = render(summary(), [])
    assert "no finished distilled run" in read(page).text
    assert "<table" not in page
    assert "<h2>Figures" not in page
