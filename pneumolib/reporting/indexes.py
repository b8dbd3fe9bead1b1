"""The way in: an index a study and an index of all, failures first. Unlike runs are never put in an order of merit.

What is made from results alone is written with them: the study's checklist, and a model card in the folder of each training.

A table is plain HTML, whole without a script; `template/page.js` adds the filter and the sorting. A cell that sorts as
a number carries it in `value`; a column is a title and whether the table may be sorted by it.
"""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pneumolib.errors import ParamsError, ResultError
from pneumolib.learning.devices import several_words
from pneumolib.project import SMOKE, in_root, load_run, params_folder, project_root
from pneumolib.reporting.checklist import CHECKLIST_PAGE, checklist_page
from pneumolib.reporting.model_card import CARD_FILE, model_card
from pneumolib.reporting.ranking import leaderboard, shared_evaluation
from pneumolib.reporting.results import Result, in_words, interval, read_result, read_results
from pneumolib.reporting.shell import banners, duration, is_synthetic, render, write_page
from pneumolib.reporting.study import run_files, run_folder

FAILURE_FILE = "failure.txt"
STATES = ["failed", "unfinished", "due", "done"]  # in the order of the page: what needs a person comes first
BY_RESULT = "Sorted by result, runs stand by their AUROC on test. That is for reading: which run is best is decided on validation."
NOT_BY_RESULT = (
    "Studies are not ranked by their results: each has its own images and splits, and figures of synthetic images say "
    "nothing about patients. Runs of one study are compared on its own page."
)
NO_RESULT = "no run has finished that has a result to show"


def write_index(study: str, waiting: Sequence[str] = ()) -> None:
    """`reports/<study>/index.html`, its checklist and model cards, and `reports/index.html`; unchanged files are left alone.

    Args:
        study: its name.
        waiting: runs that are due and have not been reached; a result of theirs is out of date.
    """
    rows = _run_rows(study, waiting)
    results = [row["result"] for row in rows if row["result"]]
    unlike = _unlike(results)
    drawn = is_synthetic(load_run(run_files(params_folder(study))[0], smoke=study.endswith(SMOKE))[0])
    on_top = banners(study, drawn or any(r.synthetic for r in results))
    titles = ["Run", "State", "Result", "Duration", "Device", "Commit", "Data"]
    page = render(
        "index.html.j2",
        title=study,
        up="../index.html",
        banners=on_top,
        lead=f"{len(rows)} runs, {sum(row['state'] == 'done' for row in rows)} finished.",
        thing="runs",
        columns=[(title, title != "Result" or not unlike) for title in titles],
        rows=rows,
        unlike=unlike,
        notes=[
            "Intervals resample groups (patients), not images. Thresholds are chosen on validation and frozen.",
            *([] if unlike else [BY_RESULT]),
        ],
        checklist=CHECKLIST_PAGE,
    )
    write_page(in_root(f"reports/{study}/index.html"), page)
    asked = render("checklist.html.j2", **checklist_page(study, results, waiting), banners=on_top)
    write_page(in_root(f"reports/{study}/{CHECKLIST_PAGE}"), asked)
    _write_cards(results)
    _write_root_index(study, waiting)


def _write_cards(results: list[Result]) -> None:
    """`MODEL_CARD.md` in the folder of each training run, with what the study's audit found in the very same images."""
    for result in results:
        if result.metrics.get("test"):
            audits = [r.checks["audit"] for r in results
                      if "audit" in r.checks and r.data.fingerprint == result.data.fingerprint]  # fmt: skip
            write_page(
                run_folder(result.study, result.run) / CARD_FILE, model_card(result, audits[0] if audits else None)
            )


def _run_rows(study: str, waiting: Sequence[str]) -> list[dict[str, Any]]:
    rows = [_run_row(study, path.stem, path.stem in waiting) for path in run_files(params_folder(study))]
    return sorted(rows, key=lambda row: STATES.index(row["state"]))


def _run_row(study: str, run: str, out_of_date: bool) -> dict[str, Any]:
    """One line of a study's index. Nothing but a whole `result.json` that is up to date counts as done."""
    row = {"name": run, "link": f"{run}.html" if in_root(f"reports/{study}/{run}.html").is_file() else None}
    try:
        result = read_result(run_folder(study, run))
    except ResultError:
        failure = in_root(f"runs/{study}/.failed/{run}/{FAILURE_FILE}")
        failed = failure.is_file()
        said = _cell(failure.read_text(encoding="utf-8").strip(), kind="what") if failed else _cell("")
        cells = [said, *[_cell("")] * 4]
        return row | _state("failed" if failed else "unfinished") | {"cells": cells, "result": None}
    auroc = result.metric("auroc")
    cells = [_cell(headline(result), auroc.value if auroc else None), *_made_of([result])]
    state = _state("due", "out of date") if out_of_date else _state("done")
    return row | state | {"cells": cells, "result": result}


def _cell(text: str, value: float | None = None, kind: str = "", lines: Sequence[str] = ()) -> dict[str, Any]:
    return {"text": text, "value": value, "kind": kind, "lines": lines}


def _state(state: str, words: str = "") -> dict[str, Any]:
    """A row's state; `chips` are what is shown of it, each a state and its words."""
    return {"state": state, "state_order": STATES.index(state), "chips": [(state, words or state)]}


def _made_of(results: list[Result]) -> list[dict[str, Any]]:
    """Cells: how long, on what, by which code, from which images; of several runs all that differ."""
    made = [r.provenance for r in results]
    seconds = sum(p.seconds for p in made)
    commits = [(p.commit or "none")[:8] + (" + changes" if p.dirty else "") for p in made]
    devices = [f"{several_words(p.device)}{p.device['device']}" for p in made if p.device.get("device")]
    return [
        _cell(duration(seconds) if results else "", seconds if results else None),
        _cell(_each(devices)),
        _cell(_each(commits), kind="code"),
        _cell(_each([r.data.fingerprint for r in results]), kind="code"),
    ]


def _each(words: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _unlike(results: list[Result]) -> dict[str, Any] | None:
    """Why the trained runs cannot be ranked, and what each was made from; None where they can."""
    try:
        leaderboard(results)
    except ResultError:
        trained = [r for r in results if r.metrics.get("test")]
    else:
        return None
    aspects = {
        "data": [r.data.fingerprint for r in trained],
        "split": [r.data.split_fingerprint or "none" for r in trained],
        "images": ["synthetic" if r.synthetic else "real" for r in trained],
        "evaluation": [str(shared_evaluation(r)) for r in trained],
    }
    differ = [name for name, values in aspects.items() if len(set(values)) > 1]
    shown = ["data", "split", "images", *(["evaluation"] if "evaluation" in differ else [])]
    runs = [
        {"name": r.run, "facts": [(name, aspects[name][i], name in differ) for name in shown]}
        for i, r in enumerate(trained)
    ]
    return {"differ": " and ".join(differ), "runs": runs}


def _write_root_index(study: str, waiting: Sequence[str]) -> None:
    studies = sorted(p.parent.name for p in in_root("reports").glob("*/index.html"))
    rows = [_study_row(name, waiting if name == study else ()) for name in studies]
    rows.sort(key=lambda row: row["state_order"])
    titles = ["Study", "State", "Images", "Results", "Duration", "Device", "Commit", "Data"]
    page = render(
        "index.html.j2",
        title="Studies",
        up=None,
        banners=banners(None, False),
        lead=f"{len(rows)} studies have pages here.",
        thing="studies",
        columns=[(title, title != "Results") for title in titles],
        rows=rows,
        unlike=None,
        notes=[NOT_BY_RESULT],
        checklist=None,
    )
    write_page(in_root("reports/index.html"), page)


def _study_row(study: str, waiting: Sequence[str]) -> dict[str, Any]:
    """One line of the index of all; a study whose parameter files are gone or faulty has no runs to show."""
    row = {"name": study, "link": f"{study}/index.html", "result": None}
    try:
        runs = _run_rows(study, waiting)
    except ParamsError:
        return row | _state("unfinished", "no parameter files") | {"cells": [_cell("")] * 6}
    results = sorted((run["result"] for run in runs if run["result"]), key=lambda r: r.run)
    count = Counter(chip for run in runs for chip in run["chips"])
    chips = [(state, f"{n} {words}") for (state, words), n in count.items()]
    kind = "smoke run" if study.endswith(SMOKE) else _kind(results)
    lines = [f"{r.run}: {said}" for r in results if (said := headline(r))]
    cells = [_cell(kind), _cell("" if lines else NO_RESULT, lines=lines), *_made_of(results)]
    return row | _state(runs[0]["state"]) | {"chips": chips, "cells": cells}


def _kind(results: list[Result]) -> str:
    if not results:
        return ""
    return "synthetic" if any(r.synthetic for r in results) else "radiographs"


def study_headline(study: str) -> str:
    """One line: what each run has to show, with the run's name."""
    lines = [f"{r.run}: {words}" + (", synthetic" if r.synthetic and "audit" not in r.checks else "")
             for r in _readable_results(study) if (words := headline(r))]  # fmt: skip
    return "; ".join(lines) or NO_RESULT


def _readable_results(study: str) -> list[Result]:
    """The study's results, or none when one of them cannot be read: `_run_row` says which, `make report` redoes it."""
    try:
        return read_results(study)
    except ResultError:
        return []


def headline(result: Result) -> str:
    """What one run found: `test AUROC 0.871 (0.823-0.912)`, `test AUROC HE -0.149, CLAHE -0.168`, or what its audit counts.

    Of the run on equalisation it is the change against images as they are, of an external validation the AUROC there and
    how far it is from the model's own. Empty for a run with nothing of the kind.
    """
    if result.metrics.get("test"):
        several = f", mean of {result.seeds()} seeds" if result.seeds() > 1 else ""
        return f"test AUROC {in_words(result.metric('auroc'))}{several}"
    if "equalisation" in result.checks:
        test = result.checks["equalisation"]["test"]
        changes = {name: test[way]["difference"] for way, name in (("hist", "HE"), ("clahe", "CLAHE"))}
        said = [f"{name} {'not computable' if d is None else f'{d:+.3f}'}" for name, d in changes.items()]
        return f"test AUROC {', '.join(said)}"
    if "external" in result.checks:
        return _external_headline(result.checks["external"])
    return _audit_headline(result) if "audit" in result.checks else ""


def _external_headline(found: dict[str, Any]) -> str:
    """`03_baseline_cnn on another source: AUROC 0.670 (0.555-0.780), from its own test -0.192 (-0.331 to -0.040)`."""
    row = next(row for row in found["differences"] if row["metric"] == "auroc")
    here = interval(row["external"], row["external_low"], row["external_high"])
    moved = interval(row["difference"], row["difference_low"], row["difference_high"], signed=True)
    return f"{found['run']} on another source: AUROC {here}, from its own test {moved}"


def _audit_headline(result: Result) -> str:
    verdicts = Counter(finding["verdict"] for finding in result.checks["audit"].values())
    counts = [f"{verdicts[v]} {v}{'s' if verdicts[v] > 1 else ''}" for v in ("error", "warning") if verdicts[v]]
    return f"audit: {', '.join(counts) or 'nothing to warn of'}"


def index_path(study: str) -> str:
    """Where the study's index is, as a person at the project's root would type it."""
    return os.path.relpath(in_root(f"reports/{study}/index.html"), project_root())
