"""A study against CLAIM 2024 and TRIPOD+AI: each item with an answer from its results, or a word on why there is none.

The items are those of `template/checklist.yaml`, which says how each is answered. Nothing is typed per study. Asked for after
every run, so it reads nothing but the results it is given.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from pneumolib.evaluation.compare import SITE, UNRELATED
from pneumolib.project import SMOKE, report_command
from pneumolib.reporting.prose import NOT, PROSE, sentence
from pneumolib.reporting.results import Result
from pneumolib.reporting.run_words import ARCHIVE, KNOWN, fact, is_archive

CHECKLIST_PAGE = "checklist.html"
# Each status, and how the page's style names it.
STATUSES = {"answered": "answered", "in part": "part", "not available": "none", "for the author": "author"}
_KNOWN = KNOWN | {"SITE": SITE, "UNRELATED": UNRELATED}  # what the templates of computed answers may ask for


@dataclass(frozen=True)
class Answer:
    """What can be said to one question.

    Attributes:
        status: one of `STATUSES`.
        lines: plain text, one thought or one run each.
        runs: names of runs whose pages show more.
    """

    status: str
    lines: list[str]
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One question with its numbers in both checklists, and its answer."""

    section: str
    key: str
    words: str
    claim: list[int]
    tripod: list[str]
    answer: Answer


@functools.cache
def sections() -> dict[str, dict[str, dict[str, Any]]]:
    """Section to key to item, as `checklist.yaml` holds them."""
    text = (PROSE.parent / "checklist.yaml").read_text(encoding="utf-8")
    # libyaml's loader, where it is there, builds the same plain values ten times faster.
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["sections"]


@dataclass(frozen=True)
class Evidence:
    """The finished runs of a study, all of them."""

    study: str
    results: list[Result]

    @cached_property
    def trained(self) -> list[Result]:
        """Runs with figures on test."""
        return [r for r in self.results if r.metrics.get("test")]

    @property
    def first(self) -> Result:
        """The run to read what all of a study share, such as the source: a trained one where there is one."""
        return (self.trained or self.results)[0]

    @property
    def audit(self) -> dict:
        """The audit's findings, empty without an exploration."""
        return next((r.checks["audit"] for r in self.results if "audit" in r.checks), {})

    def pages(self, kinds: Sequence[str]) -> list[str]:
        """Names of runs: `audit`, `trained`, `comparison`, `external`."""
        runs = {"trained": self.trained} | {
            kind: [r for r in self.results if kind in r.checks] for kind in ("audit", "comparison", "external")
        }
        return [r.run for kind in kinds for r in runs[kind]]

    def having(self, check: str) -> list[Result]:
        """Trained runs with this check."""
        return [r for r in self.trained if r.checks.get(check)]

    def by_validation(self) -> list[tuple[float, str]]:
        """Validation AUROC and name of each trained run that has one, the highest first."""
        scored = [(m.value, r.run) for r in self.trained if (m := r.metric("auroc", "validation"))]
        return sorted((pair for pair in scored if pair[0] is not None), reverse=True)

    def each(self, name: str, *more: Any) -> Answer:
        """The fact of that name of every trained run: once where all say the same, else by run.

        In part where some say nothing.
        """
        told = {r.run: fact(name, r, *more) for r in self.trained}
        if set(told.values()) == {NOT}:
            return Answer("not available", ["The results hold nothing on it."])
        same = len(set(told.values())) == 1
        lines = list(told.values())[:1] if same else [f"{run}: {words}" for run, words in told.items()]
        lines = [f"{line.removesuffix('.')}." for line in lines]
        return Answer("in part" if NOT in told.values() else "answered", lines, self.pages(["trained"]))


def checklist(study: str, results: list[Result]) -> list[Row]:
    """Every item of both checklists, in the order of a paper.

    Args:
        study: its name.
        results: of its finished runs; without any, what would be read from them is not available.
    """
    evidence = Evidence(study, results)
    return [
        Row(section, key, item["asks"], item.get("claim", []), item.get("tripod", []), _answer(item, evidence))
        for section, items in sections().items()
        for key, item in items.items()
    ]


def _answer(item: dict[str, Any], e: Evidence) -> Answer:
    """The answer to one item, made as `checklist.yaml` says at its top."""
    if "author" in item:
        return Answer("for the author", [item["author"]] if item["author"] else [])
    if item.get("needs") == "data" and not e.results:
        return Answer("not available", ["No run has finished."])
    if not e.trained and (item.get("needs") != "data" or "each" in item):
        return Answer("not available", ["No training run has finished."])
    pages = e.pages(item.get("pages", []))
    if "computed" in item:
        status, *lines = sentence(f"checklist.{item['computed']}", _KNOWN, e=e, first=e.first).split("\n\n")
        return Answer(status, lines, pages if status != "not available" else [])
    if "each" in item:
        told = e.each(item["each"])
        after = [] if told.status == "not available" else item.get("after", [])
        return Answer(told.status, [*item.get("before", []), *told.lines, *after], told.runs)
    if "answer" in item or is_archive(e.first):
        told = item.get("answer") or item["archive"]
        return Answer(told["status"], [_filled(line, e) for line in told["lines"]], pages)
    return Answer("not available", [_filled(item["drawn" if e.first.synthetic else "own"], e)])


def _filled(line: str, e: Evidence) -> str:
    known = {"study": e.study.removesuffix(SMOKE), "left_out": f"{e.first.data.left_out:,}"}
    return line.format(**ARCHIVE, **known, Images=ARCHIVE["images"].capitalize())


def checklist_page(study: str, results: list[Result], waiting: Sequence[str] = ()) -> dict[str, Any]:
    """What the template `checklist.html.j2` shows of a study, without style and banners.

    Args:
        study, results: as for `checklist`.
        waiting: runs that are due; answers that rest on their results are out of date.
    """
    rows = checklist(study, results)
    return {
        "study": study,
        "rows": rows,
        "classes": STATUSES,
        "counts": Counter(row.answer.status for row in rows),
        "trained": Evidence(study, results).pages(["trained"]),
        "command": report_command(study),
        "late": [r.run for r in results if r.run in waiting],
    }
