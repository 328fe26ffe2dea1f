"""Claims about the HTML page: it holds the report, loads nothing, and has no markup but its own."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from records import fresh, pruned, record, summary, trial

from kdsweep.analysis.findings import Report
from kdsweep.report.html import render

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
    runs = [trial(0, 0.5, 4), pruned(1, 2), record("teacher")]
    return summary(*runs, *fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.92, 0.93, 0.921]))


def test_the_page_tells_what_the_terminal_tells() -> None:
    """It holds the verdict, every finding, and every cell of the table of arms."""
    report = confirmed()
    text = " ".join(read(render(report, {})).text.split())
    for sentence in (report.headline, *report.findings, *report.missing):
        assert sentence in text
    for cell in ("3*", "90.33 ±0.58", "92.37 ±0.55", "Pruned trials", "2 of 10"):
        assert cell in text


def test_the_page_loads_nothing() -> None:
    """The figures are inside; there is no script, no style sheet and no address."""
    page = render(confirmed(), {"history.png": b"a picture"})
    assert read(page).loaded == ["data:image/png;base64,YSBwaWN0dXJl"]
    assert not re.search(r"<script|@import|url\(|https?:", page)


def test_names_are_escaped() -> None:
    """The name of a study may look like markup."""
    report = confirmed()
    parent = replace(report.study.parent, name="<script>alert(1)</script> & co")
    study = replace(report.study, parent=parent)
    page = render(replace(report, comparison=replace(report.comparison, study=study)), {})
    assert "<script>" not in page
    assert "Study <script>alert(1)</script> & co" in read(page).text


def test_the_verdict_has_its_colour() -> None:
    """It depends on distillation against scratch, and is grey without a verdict."""
    assert 'class="verdict better"' in render(confirmed(), {})
    assert 'class="verdict unknown"' in render(summary(), {})
    same = summary(*fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.9, 0.92, 0.9]))
    assert 'class="verdict not-distinguishable"' in render(same, {})


def test_the_chosen_trial_stands_out() -> None:
    """One row of the trials is marked."""
    page = render(summary(trial(0, 0.1, 4), trial(1, 0.5, 4, val=0.95)), {})
    (row,) = re.findall(r'<tr class="marked">(.*?)</tr>', page)
    assert row.startswith("<td>1</td>")


def test_a_page_of_nothing_is_whole() -> None:
    """A study that has just begun has no empty tables and no empty headings."""
    page = render(summary(), {})
    assert "no finished distilled run" in read(page).text
    assert "<table" not in page
    assert "<h2>Figures" not in page
