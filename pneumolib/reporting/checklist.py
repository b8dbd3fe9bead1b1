"""A study against CLAIM 2024 and TRIPOD+AI: each item with an answer from its results, or a word on why there is none.

The items are those of `template/checklist.yaml`, which says how each is answered. Nothing is typed per study. Asked for after
every run, so it reads nothing but the results it is given.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from pneumolib.evaluation.compare import SITE, UNRELATED
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.project import COMPARISON, SMOKE, report_command
from pneumolib.reporting.check_tables import number
from pneumolib.reporting.prose import row_interval
from pneumolib.reporting.results import Result
from pneumolib.reporting.run_words import ARCHIVE, NO_AUDIT, NOT, asked, fact, is_archive, source_limits

CHECKLIST_PAGE = "checklist.html"
CLAIM_ITEMS = range(1, 45)
# Main items of TRIPOD+AI with their sub-items; those without are not named.
TRIPOD_PARTS = {"3": "abc", "5": "ab", "6": "abc", "8": "abc", "9": "abc", "12": "abcdefg", "18": "abcdef", "20": "abc",
                "23": "ab", "27": "abc"}  # fmt: skip
TRIPOD_ITEMS = {str(n): TRIPOD_PARTS.get(str(n), "") for n in range(1, 28)}
Status = Literal["answered", "in part", "not available", "for the author"]
_CLASSES = dict(zip(get_args(Status), ("answered", "part", "none", "author"), strict=True))


@dataclass(frozen=True)
class Answer:
    """What can be said to one question.

    Attributes:
        lines: plain text, one thought or one run each.
        runs: names of runs whose pages show more.
    """

    status: Status
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

    @property
    def css_class(self) -> str:
        """The status as the page's style names it."""
        return _CLASSES[self.answer.status]


@functools.cache
def sections() -> dict[str, dict[str, dict[str, Any]]]:
    """Section to key to item, as `checklist.yaml` holds them."""
    text = Path(__file__).with_name("template").joinpath("checklist.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["sections"]


@dataclass(frozen=True)
class Evidence:
    """The finished runs of a study, all of them."""

    study: str
    results: list[Result]

    @cached_property
    def trained(self) -> list[Result]:
        """Runs with figures on test."""
        return [r for r in self.results if r.metrics.get("test")]

    @cached_property
    def explored(self) -> Result | None:
        """The run with the audit."""
        return next((r for r in self.results if "audit" in r.checks), None)

    @property
    def first(self) -> Result:
        """The run to read what all of a study share, such as the source: a trained one where there is one."""
        return (self.trained or self.results)[0]

    @property
    def audit(self) -> dict:
        """The audit's findings, empty without an exploration."""
        return self.explored.checks["audit"] if self.explored else {}

    def pages(self, which: str | None) -> list[str]:
        """Names of runs: `audit`, `trained` or `comparison`."""
        if which == "audit":
            return [self.explored.run] if self.explored else []
        if which == "comparison":
            return [r.run for r in self.results if r.notebook == COMPARISON]
        return [r.run for r in self.trained] if which == "trained" else []

    def each(self, say: str | Callable[[Result], str]) -> Answer:
        """What every trained run says, `say` or the fact of that name: once where all say the same, else by run.

        In part where some say nothing.
        """
        told = {r.run: fact(say, r) if isinstance(say, str) else say(r) for r in self.trained}
        silent = [run for run, words in told.items() if words == NOT]
        if len(silent) == len(told):
            return Answer("not available", ["The results hold nothing on it."])
        same = len(set(told.values())) == 1
        lines = [next(iter(told.values()))] if same else [f"{run}: {words}" for run, words in told.items()]
        lines = [line if line.endswith(".") else f"{line}." for line in lines]
        return Answer("in part" if silent else "answered", lines, self.pages("trained"))


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
    pages = e.pages(item.get("pages"))
    if "computed" in item:
        return _COMPUTED[item["computed"]](e)
    if "each" in item:
        told = e.each(item["each"])
        after = [] if told.status == "not available" else item.get("after", [])
        return Answer(told.status, [*item.get("before", []), *told.lines, *after], told.runs)
    if "answer" in item:
        return Answer(item["answer"]["status"], [_filled(line, e) for line in item["answer"]["lines"]], pages)
    if is_archive(e.first):
        return Answer(item["archive"]["status"], [_filled(line, e) for line in item["archive"]["lines"]], pages)
    return Answer("not available", [_filled(item["drawn" if e.first.synthetic else "own"], e)])


def _filled(line: str, e: Evidence) -> str:
    known = {"study": e.study.removesuffix(SMOKE), "left_out": f"{e.first.data.left_out:,}"}
    return line.format(**ARCHIVE, **known, Images=ARCHIVE["images"].capitalize())


def counts(rows: list[Row]) -> dict[Status, int]:
    """How many rows have each status."""
    found = Counter(row.answer.status for row in rows)
    return {status: found[status] for status in _CLASSES}


def checklist_page(study: str, results: list[Result], waiting: Sequence[str] = ()) -> dict[str, Any]:
    """What the template `checklist.html.j2` shows of a study, without style and banners.

    Args:
        study, results: as for `checklist`.
        waiting: runs that are due; answers that rest on their results are out of date.
    """
    rows = checklist(study, results)
    return {
        "study": study,
        "sections": {section: [row for row in rows if row.section == section] for section in sections()},
        "counts": [(status, _CLASSES[status], n) for status, n in counts(rows).items()],
        "total": len(rows),
        "claim_items": len(CLAIM_ITEMS),
        "tripod_items": len(TRIPOD_ITEMS),
        "trained": Evidence(study, results).pages("trained"),
        "command": report_command(study),
        "late": [r.run for r in results if r.run in waiting],
    }


def _aims(e: Evidence) -> Answer:
    several = "" if len(e.trained) == 1 else "s, ranked by validation"
    lines = [f"Models are made and tested: {len(e.trained)} training run{several}. Hypotheses are for the author."]
    return Answer("in part", lines, e.pages("trained"))


def _source(e: Evidence) -> Answer:
    status = "answered" if e.first.synthetic or is_archive(e.first) else "in part"
    return Answer(status, [fact("source", e.first), f"{_sizes(e).capitalize()}."], e.pages("audit"))


def _sizes(e: Evidence) -> str:
    words = fact("size", e.first)
    return words[:1].lower() + words[1:]


def _subsets(e: Evidence) -> Answer:
    ways = {"join": "joins the training pool", "leave_out": "is left out"}
    way = ways.get(asked(e.first, "data.val_folder"), NOT)
    lines = [f"All images that could be read. The source's own validation folder, where it has one, {way}."]
    return Answer("answered" if way != NOT else "in part", lines)


def _missing(e: Evidence) -> Answer:
    lines = [f"{e.first.data.left_out:,} files were left out as unusable."]
    lines += ["Nothing is filled in: every image that is used has its pixels, label and group."]
    lines += ["The exploration page lists files that were left out, with the reason."] if e.explored else []
    return Answer("answered" if e.explored else "in part", lines, e.pages("audit"))


def _parts(e: Evidence) -> Answer:
    lines = [fact("split", e.first), *_sizes_of_parts(e)]
    whole = lines[0] != NOT and e.first.checks.get("split")
    return Answer("answered" if whole else "in part", lines, e.pages("audit"))


def _disjoint(e: Evidence) -> Answer:
    lines = ["Groups: none stands in two parts; every run stops where one would."]
    lines += [ARCHIVE["groups"]] if is_archive(e.first) else []
    groups, copies = (e.audit.get(f"{name}_across_splits") for name in ("groups", "duplicates"))
    if not groups:
        return Answer("in part", [*lines, "No audit of these images has finished."])
    lines += [f"Audit: {groups['sentence']}"] + ([copies["sentence"]] if copies else [])
    clean = all(finding["verdict"] in ("ok", "note") for finding in (groups, copies) if finding)
    return Answer("answered" if clean else "in part", lines, e.pages("audit"))


def _size(e: Evidence) -> Answer:
    lines = [
        f"All that the source has: {_sizes(e)}. No number was computed beforehand; the intervals say what this one allows."
    ]
    lines += [f"{r.run}: the test AUROC's interval is {m.high - m.low:.3f} wide." for r in e.trained
              if (m := r.metric("auroc")) and None not in (m.low, m.high)]  # fmt: skip
    return Answer("in part", lines, e.pages("trained"))


def _differences(e: Evidence) -> Answer:
    names = ("metadata_only_test", "storage_only_test", "border_only_test")
    told = [e.audit[name]["sentence"] for name in names if name in e.audit]
    if not told:
        return Answer("not available", ["No audit of these images has finished."])
    shown = "Sizes, grey values and facts of the files are shown by part on the exploration page."
    unknown = "Patients cannot be compared: nothing is known of the single one."
    return Answer("in part", [shown, *told, unknown], e.pages("audit"))


def _flow(e: Evidence) -> Answer:
    lines = [f"{_sizes(e).capitalize()}.", *_sizes_of_parts(e)]
    return Answer("answered" if e.explored else "in part", lines, e.pages("audit"))


def _sizes_of_parts(e: Evidence) -> list[str]:
    sizes = fact("sizes_of_parts", e.first)
    return [] if sizes == NOT else [f"{sizes}."]


def _data_sharing(e: Evidence) -> Answer:
    fingerprint = e.first.data.fingerprint
    if e.first.synthetic:
        drawn = "The program draws the same images again from the parameters."
        return Answer("answered", [drawn, f"Fingerprint {fingerprint}."])
    if is_archive(e.first):
        return Answer("answered", [f"{ARCHIVE['name']}.", f"Fingerprint of the images used: {fingerprint}."])
    return Answer("for the author", [f"The images are the user's own. Their fingerprint: {fingerprint}."])


def _selection(e: Evidence) -> Answer:
    told = e.each("epochs")
    scored = [(m.value, r.run) for r in e.trained if (m := r.metric("auroc", "validation")) and m.value is not None]
    lines = [*told.lines, "Runs are ranked by validation AUROC; test plays no part."]
    lines += [f"Best of {len(scored)}: {max(scored)[1]}, validation AUROC {max(scored)[0]:.3f}."] if scored else []
    return Answer(told.status, lines, told.runs + e.pages("comparison"))


def _limitations(e: Evidence) -> Answer:
    verdicts = Counter(finding["verdict"] for finding in e.audit.values())
    audit = f"The audit of the images, by verdict: error {verdicts['error']}, warning {verdicts['warning']}."
    lines = [*source_limits(e.first), audit if e.explored else NO_AUDIT]
    return Answer("in part", [*lines, "What they mean for the conclusions is for the author."], e.pages("audit"))


def _model_file(e: Evidence) -> Answer:
    told = e.each("model_file")
    if told.status == "not available":
        return told
    return Answer("in part", [*told.lines, "Where it is published, and its licence: for the author."], told.runs)


def _code_sharing(e: Evidence) -> Answer:
    lines = [f"Commit: {line}" for line in e.each("commit").lines]
    published = "Where the code is published, and its licence: for the author."
    return Answer("in part", [*lines, published], e.pages("trained"))


def _metrics(e: Evidence) -> Answer:
    shown = [name for key, name in METRIC_NAMES.items() if any(r.metric(key) for r in e.trained)]
    lines = [f"On validation and test: {', '.join(shown)}. Ranking and calls at one threshold are different questions, and so "
             f"is whether probabilities are right: all three are asked."]  # fmt: skip
    plots = {"calibration": "calibration", "predictive_values": "predictive values at other prevalences",
             "confusion": "the table of calls"}  # fmt: skip
    beside = [words for key, words in plots.items() if any(r.checks.get(key) for r in e.trained)]
    lines += [f"Beside them: {', '.join(beside)}."] if beside else []
    return Answer("answered", lines, e.pages("trained"))


def _uncertainty(e: Evidence) -> Answer:
    told = e.each("interval_method")
    lines = [
        *told.lines,
        "Images of one patient resemble each other; counting them singly would make intervals too narrow.",
    ]
    lines += ["Runs are compared by paired differences on the same resamples."] if e.pages("comparison") else []
    lines += [f"{r.run}: with labels dealt out anew the AUROC is {number(p['mean'])} ({number(p.get('low'))}-"
              f"{number(p.get('high'))}); p = {number(p.get('p'))}." for r in e.trained
              if (p := r.checks.get("permutation")) and p.get("mean") is not None]  # fmt: skip
    return Answer(told.status, lines, told.runs + e.pages("comparison"))


def _parts_of_test(e: Evidence, wanted: Callable[[str], bool]) -> Answer:
    def say(r: Result) -> str:
        rows = [row for row in r.checks.get("subgroups") or [] if wanted(row["part"])]
        return (
            "; ".join(f"{row['part']} ({row['images']} images): AUROC {row_interval(row, 'auroc')}" for row in rows)
            or NOT
        )

    return e.each(say)


def _clusters(e: Evidence) -> Answer:
    told = _parts_of_test(e, lambda part: part.startswith(SITE))
    if told.status != "not available":
        return told
    one = "All images come from one hospital: there are no clusters to compare."
    other = "The results name no hospitals or other sources to compare."
    return Answer("not available", [one if is_archive(e.first) else other])


def _robustness(e: Evidence) -> Answer:
    told, sample = e.each("robustness"), _parts_of_test(e, lambda part: part.startswith(UNRELATED))
    lines = [line for answer in (told, sample) if answer.status != "not available" for line in answer.lines]
    if not lines:
        return told
    both = {told.status, sample.status} == {"answered"}
    return Answer("answered" if both else "in part", lines, e.pages("trained"))


def _external(e: Evidence) -> Answer:
    tried = {r.run: r.checks["external"] for r in e.results if "external" in r.checks}
    if not tried:
        none = "Test is of the same source as training. Nothing was tested on images from elsewhere."
        return Answer("not available", [none])
    lines = []
    for found in tried.values():
        told = [f"{METRIC_NAMES[row['metric']]} {row_interval(row, 'external')}, from its own test "
                f"{row_interval(row, 'difference', signed=True)}" for row in found["differences"]]  # fmt: skip
        lines.append(f"{found['run']} on {found['images']} images of {found['groups']} groups from another source, nothing "
                     f"chosen anew: {'; '.join(told)}.")  # fmt: skip
    return Answer("answered", lines, list(tried))


def _numbers(e: Evidence) -> Answer:
    told = e.each("sizes_of_parts")
    whole = all(r.checks.get("split") for r in e.trained)
    return Answer(told.status if whole or told.status == "not available" else "in part", told.lines, told.runs)


def _accuracy(e: Evidence) -> Answer:
    told = e.each("calls")
    others = [f"{r.run}: at a prevalence of {number(row['prevalence'])}, PPV {row_interval(row, 'ppv')}, NPV "
              f"{row_interval(row, 'npv')}." for r in e.trained for row in (r.checks.get("predictive_values") or [])[:1]]  # fmt: skip
    return Answer(told.status, [*told.lines, *others], told.runs)


def _subgroups(e: Evidence) -> Answer:
    told = _parts_of_test(e, lambda part: part != "all")
    if told.status == "not available":
        return told
    return Answer("in part", [*told.lines, "Not by age, sex or origin, which are not available."], told.runs)


def _updating(e: Evidence) -> Answer:
    told = e.each("calibration")
    lines = [
        "None: threshold and calibration are frozen on validation before test is read, and nothing moves afterwards."
    ]
    if told.status != "not available":
        lines += ["Calibration before the test:", *told.lines]
    return Answer("answered", lines, e.pages("trained"))


_COMPUTED: dict[str, Callable[[Evidence], Answer]] = {
    "aims": _aims, "source": _source, "subsets": _subsets, "missing": _missing, "parts": _parts, "disjoint": _disjoint,
    "size": _size, "differences": _differences, "flow": _flow, "data_sharing": _data_sharing, "selection": _selection,
    "limitations": _limitations, "model_file": _model_file, "code_sharing": _code_sharing, "metrics": _metrics,
    "uncertainty": _uncertainty, "clusters": _clusters, "robustness": _robustness, "external": _external,
    "numbers": _numbers, "accuracy": _accuracy, "subgroups": _subgroups, "updating": _updating,
}  # fmt: skip
