"""Two summaries of results that others ask for: a study's reporting checklist, and a run's model card.

The checklist is CLAIM 2024 with TRIPOD+AI: each item with an answer from the study's results, or a word on why there is none.
The items are those of `template/checklist.yaml`, which says how each is answered. Nothing is typed per study.

The card, in Markdown, says what a network is, for what, on which images, and how well. The sections of
`template/model_card.md.j2` are those of Mitchell et al., "Model Cards for Model Reporting", FAccT 2019.

Both are asked for after every run, so they read nothing but the results they are given.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from markupsafe import Markup

from pneumolib.evaluation.compare import SITE
from pneumolib.params import FAMILIES
from pneumolib.project import report_command
from pneumolib.provenance import device_words
from pneumolib.reporting.prose import ARCHIVE, NOT, PROSE, asked, cells, fact, is_archive, safe, sentence, templates
from pneumolib.reporting.results import Result

CARD_FILE = "MODEL_CARD.md"
CHECKLIST_PAGE = "checklist.html"
# Each status, and how the page's style names it.
STATUSES = {"answered": "answered", "in part": "part", "not available": "none", "for the author": "author"}


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

    @functools.cached_property
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
        runs = {"trained": self.trained}
        return [r.run for kind in kinds for r in runs.get(kind, self.results) if kind in ("trained", *r.checks)]

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


def checklist(study: str, results: list[Result]) -> list[dict[str, Any]]:
    """Every item of both checklists, in the order of a paper.

    Args:
        study: its name.
        results: of its finished runs; without any, what would be read from them is not available.
    Returns:
        a row an item: what `checklist.yaml` holds of it, its `section` and `key`, and its `answer`, an `Answer`.
    """
    evidence = Evidence(study, results)
    asked = [item | {"section": name, "key": key} for name, items in sections().items() for key, item in items.items()]
    return [item | {"answer": _answer(item, evidence)} for item in asked]


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
        status, *lines = sentence(f"checklist.{item['computed']}", e=e, first=e.first).split("\n\n")
        return Answer(status, lines, pages if status != "not available" else [])
    if "each" in item:
        told = e.each(item["each"])
        after = [] if told.status == "not available" else item.get("after", [])
        return Answer(told.status, [*item.get("before", []), *told.lines, *after], told.runs)
    if is_archive(e.first):
        told = item["archive"]
        return Answer(told["status"], [_filled(line, e) for line in told["lines"]], pages)
    return Answer("not available", [_filled(item["drawn" if e.first.synthetic else "own"], e)])


def _filled(line: str, e: Evidence) -> str:
    data, sites = e.first.data, sum(row["part"].startswith(SITE) for row in e.first.checks.get("subgroups") or [])
    known = {"left_out": f"{data.left_out:,}", "sites": f"{sites or 'no'} sites",
             "columns": f"the columns {', '.join(data.columns)}" if data.columns else "no further columns"}  # fmt: skip
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
        "counts": Counter(row["answer"].status for row in rows),
        "trained": Evidence(study, results).pages(["trained"]),
        "command": report_command(study),
        "late": [r.run for r in results if r.run in waiting],
    }


def model_card(result: Result, audit: dict | None = None) -> str:
    """The card of a finished training run; what its result does not hold is `not available`.

    Args:
        result: with metrics of test.
        audit: `checks.audit` of the exploration of the same images, for the limitations; None where there is none.
    """
    image = asked(result, "image") or {}
    settings = [f"{k}={v!r}" for k, v in image.items() if isinstance(v, bool | int | float | str)]
    template = templates("markdown").get_template("model_card.md.j2")
    text = template.render(
        r=result,
        table=_table,
        audit=audit,
        image=image,
        settings=Markup(", ".join(settings)),
        way=asked(result, "model.preprocess") or FAMILIES.get(asked(result, "model.backbone"), (None,))[0],
        machine=device_words(result.provenance.device),
    )
    return text.rstrip() + "\n"


def _table(name: str, found: Any) -> Markup:
    """A table of `tables.md.j2` in Markdown, without its caption: a card has headings."""
    if not found:
        return Markup(f"{NOT.capitalize()}.\n")
    titles, *rows = ([safe(cell) for cell in line] for line in cells(name, found)[1])
    return Markup("".join(f"| {' | '.join(line)} |\n" for line in (titles, ["---"] * len(titles), *rows)))
