"""A study against CLAIM 2024 and TRIPOD+AI: each item with an answer from its results, or a word on why there is none.

Nothing here is typed per study: an answer follows the results, and what they do not hold is said to be missing. Asked for
after every run, so it reads nothing but the results it is given.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pneumolib.params import report_command
from pneumolib.reporting.checklist_data import DATA
from pneumolib.reporting.checklist_evidence import STATUSES, Answer, Evidence, Status
from pneumolib.reporting.checklist_items import CLAIM_ITEMS, SECTIONS, TRIPOD_ITEMS, Item
from pneumolib.reporting.checklist_model import MODEL
from pneumolib.reporting.checklist_results import RESULTS
from pneumolib.reporting.results import Result

CHECKLIST_PAGE = "checklist.html"
# What only people can say; the words are a start, the rest have none.
AUTHOR = {
    "title": "Deep learning (convolutional networks) that tells pneumonia from normal lungs on chest radiographs.",
    "background": "Where the study repeats published systems, its comparison shows their figures beside its own.",
    "why_outcome": "The labels are those that come with the images; the results know no other.",
    "ethics": "The results name no committee and no consent.",
    "registration": "No trial was run. Whether the study was registered the results do not say.",
}
_CLASSES = {"answered": "answered", "in part": "part", "not available": "none", "for the author": "author"}


@dataclass(frozen=True)
class Row:
    """One question and its answer, see `Item` and `Answer`; `runs` are those whose pages show more."""

    section: str
    key: str
    words: str
    claim: tuple[int, ...]
    tripod: tuple[str, ...]
    status: Status
    lines: list[str]
    runs: list[str]

    @property
    def css_class(self) -> str:
        """The status as the page's style names it."""
        return _CLASSES[self.status]


def checklist(study: str, results: list[Result]) -> list[Row]:
    """Every item of both checklists, in the order of a paper.

    Args:
        study: its name.
        results: of its finished runs; without any, what would be read from them is not available.
    """
    evidence = Evidence(study, results)
    return [_row(section, item, _answer(item, evidence)) for section, items in SECTIONS.items() for item in items]


def _row(section: str, item: Item, answer: Answer) -> Row:
    return Row(section, item.key, item.words, item.claim, item.tripod, answer.status, answer.lines, answer.runs)


def _answer(item: Item, evidence: Evidence) -> Answer:
    if item.key in DATA:
        return DATA[item.key](evidence) if evidence.results else Answer("not available", ["No run has finished."])
    of_trained = MODEL | RESULTS
    if item.key in of_trained:
        missing = Answer("not available", ["No training run has finished."])
        return of_trained[item.key](evidence) if evidence.trained else missing
    return Answer("for the author", [AUTHOR[item.key]] if item.key in AUTHOR else [])


def counts(rows: list[Row]) -> dict[Status, int]:
    """How many rows have each status."""
    found = Counter(row.status for row in rows)
    return {status: found[status] for status in STATUSES}


def checklist_page(study: str, results: list[Result], waiting: Sequence[str] = ()) -> dict[str, Any]:
    """What the template `checklist.html.j2` shows of a study, without style and banners.

    Args:
        study, results: as for `checklist`.
        waiting: runs that are due; answers that rest on their results are out of date.
    """
    rows = checklist(study, results)
    sections: dict[str, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    return {
        "study": study,
        "sections": sections,
        "counts": [(status, _CLASSES[status], number) for status, number in counts(rows).items()],
        "total": len(rows),
        "claim_items": len(CLAIM_ITEMS),
        "tripod_items": len(TRIPOD_ITEMS),
        "trained": Evidence(study, results).pages,
        "command": report_command(study),
        "late": [r.run for r in results if r.run in waiting],
    }
