"""Results to pages: one HTML file a run, an index a study, an index of all. Whole and offline: nothing is fetched."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path

import jinja2

from pneumolib.data.archive import is_drawn
from pneumolib.param_files import load_run
from pneumolib.params import SMOKE, RunParams, in_root, params_folder, project_root, report_command
from pneumolib.reporting.results import RESULT_FILE, Result, ResultError, in_words, read_result, read_results
from pneumolib.reporting.study import Step, run_files, run_folder

TEMPLATES = Path(__file__).parent / "template"
FAILURE_FILE = "failure.txt"


def write_run_page(step: Step) -> None:
    """The page of a finished run, from its executed notebook and `result.json`."""
    result = read_result(step.folder)
    context = {"banners": _banners(step.study, result.synthetic), "facts": _made_of(result), "key": page_key(step)}
    _write(step.page, _render_notebook(step, step.folder / "executed.ipynb", context))


def write_failed_page(step: Step, failed: Path, headline: str) -> None:
    """The page of a failed run: the error and the end of the log first, then the notebook as far as it came."""
    (failed / FAILURE_FILE).write_text(headline + "\n", encoding="utf-8")
    log = (failed / "run.log").read_text(encoding="utf-8").splitlines()
    context = {"failure": headline, "last_lines": "\n".join(log[-15:]), "key": "failed",
               "banners": _banners(step.study, _is_synthetic(step.params))}  # fmt: skip
    _write(step.page, _render_notebook(step, failed / "executed.ipynb", context))


def write_unfinished_page(step: Step, started: datetime) -> None:
    """What stands in the page's place while the run is at work, and after it was killed."""
    words = {"study": step.study, "run": step.run, "started": f"{started:%Y-%m-%d %H:%M} UTC",
             "command": report_command(step.study), "banners": _banners(step.study, _is_synthetic(step.params))}  # fmt: skip
    _write(step.page, _template("unfinished.html.j2").render(**words, css=_css()))


def _banners(study: str | None, synthetic: bool) -> str:
    """What every page says of itself first; `study` is None for the index of all."""
    smoke = study is not None and study.endswith(SMOKE)
    return _template("banners.html.j2").render(smoke=smoke, synthetic=synthetic)


def _is_synthetic(params: RunParams) -> bool:
    """Whether the images are drawn: by the parameters, or by the mark that a drawing carries wherever it is copied."""
    return params.data.source == "synthetic" or is_drawn(in_root(params.data.root))


def refresh(steps: list[Step], waiting: Sequence[str] = ()) -> int:
    """Write pages that are missing or older than their result or the template, and the indexes; count the pages."""
    finished = [s for s in steps if s.run not in waiting and (s.folder / RESULT_FILE).is_file()]
    late = [s for s in finished if _key_on_page(s.page) != page_key(s)]
    for step in late:
        write_run_page(step)
    write_index(steps[0].study, waiting)
    return len(late)


def page_key(step: Step) -> str:
    """Changes when the page would: with the result, the executed notebook, the template, or this module."""
    parts = [step.folder / RESULT_FILE, step.folder / "executed.ipynb", Path(__file__)]
    parts += sorted(p for p in TEMPLATES.rglob("*") if p.is_file())
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in parts)).hexdigest()[:16]


def _key_on_page(page: Path) -> str | None:
    if not page.is_file():
        return None
    with page.open(encoding="utf-8") as file:
        match = re.search(r"pneumolib-key: (\w+)", file.read(1000))
    return match and match[1]


def _render_notebook(step: Step, executed: Path, context: dict) -> str:
    """nbconvert with our template; `{}` cells where the run failed before the notebook was written."""
    # Imported here: nbconvert takes as long to load as the whole up-to-date check.
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor

    notebook = nbformat.read(executed, as_version=4) if executed.is_file() else nbformat.v4.new_notebook()
    for cell in notebook.cells:
        cell.outputs = [output for output in cell.get("outputs", []) if not _is_progress_bar(output)]
    exporter = HTMLExporter(
        template_name="page",
        extra_template_basedirs=[str(TEMPLATES)],
        preprocessors=[
            CoalesceStreamsPreprocessor(enabled=True),
            # The demo's values, which the injected ones replaced, would only confuse.
            TagRemovePreprocessor(enabled=True, remove_cell_tags={"parameters"}),
        ],
    )
    page = {"study": step.study, "run": step.run, "title": step.run, "css": _css() + _highlight_css(), **context}
    return exporter.from_notebook_node(notebook, resources={"page": page})[0]


def _is_progress_bar(output: dict) -> bool:
    """States of a progress bar: of use while it ran, and its end stands in the log."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    states = [state for state in re.split(r"[\r\n]+", output.text) if state.strip()]
    return all(re.match(r".*\d+%\|.*\| \d+/\d+ \[", state) for state in states)


def _made_of(result: Result) -> dict[str, str]:
    """Provenance, for the foot of the page."""
    p = result.provenance
    commit = (
        "not a git checkout" if p.commit is None else p.commit[:12] + (" with uncommitted changes" if p.dirty else "")
    )
    return {
        "Commit": commit,
        "Run": f"{p.started:%Y-%m-%d %H:%M} UTC, {p.seconds:.0f} s",
        "Device": ", ".join(str(v) for v in p.device.values()) or "CPU, no training",
        "Data": f"fingerprint {result.data.fingerprint}, {result.data.images} images of {result.data.groups} groups, "
        f"{result.data.left_out} files left out",
        "Seed": str(result.parameters["seed"]),
        "Versions": f"Python {p.python}, " + ", ".join(f"{k} {v}" for k, v in p.versions.items()),
    }


def write_index(study: str, waiting: Sequence[str] = ()) -> None:
    """`reports/<study>/index.html` and `reports/index.html`, failures first; unchanged files are left alone.

    Args:
        study: its name.
        waiting: runs that are due and have not been reached; a result of theirs is out of date.
    """
    files = run_files(params_folder(study))
    rows = [_run_row(study, path.stem, path.stem in waiting) for path in files]
    rows.sort(key=lambda row: row["state"] == "done")
    drawn = _is_synthetic(load_run(files[0], smoke=study.endswith(SMOKE))[0])
    page = _template("index.html.j2").render(
        title=study,
        up="../index.html",
        css=_css(),
        banners=_banners(study, drawn or any(r.synthetic for r in _readable_results(study))),
        lead=f"{len(rows)} runs, {sum(row['state'] == 'done' for row in rows)} finished.",
        columns=["Run", "State", "Result", "Seconds", "Device", "Commit", "Data"],
        rows=rows,
        note="Intervals resample groups (patients), not images. Thresholds are chosen on validation and frozen.",
    )
    _write(in_root(f"reports/{study}/index.html"), page)
    _write_root_index()


def _readable_results(study: str) -> list[Result]:
    """The study's results, or none when one of them cannot be read: `_run_row` says which, `make report` redoes it."""
    try:
        return read_results(study)
    except ResultError:
        return []


def _run_row(study: str, run: str, out_of_date: bool) -> dict:
    """One line of a study's index. Nothing but a whole `result.json` that is up to date counts as done."""
    row = {"name": run, "link": f"{run}.html" if in_root(f"reports/{study}/{run}.html").is_file() else None}
    try:
        result = read_result(run_folder(study, run))
    except ResultError:
        failure = in_root(f"runs/{study}/.failed/{run}/{FAILURE_FILE}")
        state = "failed" if failure.is_file() else "unfinished"
        message = failure.read_text(encoding="utf-8").strip() if failure.is_file() else ""
        return row | {"state": state, "state_words": state, "message": message, "cells": [""] * 5}
    p = result.provenance
    commit = (p.commit or "none")[:8] + (" +" if p.dirty else "")
    cells = [
        headline(result),
        f"{p.seconds:.0f}",
        p.device.get("device", ""),
        commit,
        result.data.fingerprint,
    ]
    state, words = ("due", "out of date") if out_of_date else ("done", "done")
    return row | {"state": state, "state_words": words, "message": "", "cells": cells}


def _write_root_index() -> None:
    studies = sorted(p.parent.name for p in in_root("reports").glob("*/index.html"))
    rows = []
    for study in studies:
        results = _readable_results(study)
        kind = "synthetic" if any(r.synthetic for r in results) else "radiographs" if results else ""
        kind = "smoke run" if study.endswith(SMOKE) else kind
        row = {"name": study, "link": f"{study}/index.html", "message": ""}
        rows.append(row | {"state": "done" if results else "unfinished", "state_words": f"{len(results)} finished",
                           "cells": [kind, study_headline(study)]})  # fmt: skip
    page = _template("index.html.j2").render(
        title="Studies", up=None, css=_css(), banners=_banners(None, False), lead=f"{len(rows)} studies have pages here.",
        columns=["Study", "Runs", "Images", "Headline"], rows=rows, note="",
    )  # fmt: skip
    _write(in_root("reports/index.html"), page)


def study_headline(study: str) -> str:
    """One line: what each run has to show, with the run's name."""
    lines = [f"{r.run}: {words}" + (", synthetic" if r.synthetic and "audit" not in r.checks else "")
             for r in _readable_results(study) if (words := headline(r))]  # fmt: skip
    return "; ".join(lines) or "no run has finished that has a result to show"


def headline(result: Result) -> str:
    """What one run found: `test AUROC 0.871 (0.823-0.912)`, `test AUROC HE -0.149, CLAHE -0.168`, or what its audit counts.

    Of the run on equalisation it is the change against images as they are. Empty for a run with nothing of the kind.
    """
    if result.metrics.get("test"):
        return f"test AUROC {in_words(result.metric('auroc'))}"
    if "equalisation" in result.checks:
        test = result.checks["equalisation"]["test"]
        changes = {name: test[way]["difference"] for way, name in (("hist", "HE"), ("clahe", "CLAHE"))}
        said = [f"{name} {'not computable' if d is None else f'{d:+.3f}'}" for name, d in changes.items()]
        return f"test AUROC {', '.join(said)}"
    return _audit_headline(result) if "audit" in result.checks else ""


def _audit_headline(result: Result) -> str:
    verdicts = Counter(finding["verdict"] for finding in result.checks["audit"].values())
    counts = [f"{verdicts[v]} {v}{'s' if verdicts[v] > 1 else ''}" for v in ("error", "warning") if verdicts[v]]
    return f"audit: {', '.join(counts) or 'nothing to warn of'}"


def index_path(study: str) -> str:
    """Where the study's index is, as a person at the project's root would type it."""
    return os.path.relpath(in_root(f"reports/{study}/index.html"), project_root())


@cache
def _css() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def _highlight_css() -> str:
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("default", "github-dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n.highlight {{ background: none !important; }}"


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)


def _write(path: Path, text: str) -> None:
    """Atomically, and only when the text differs."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
