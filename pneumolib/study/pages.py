"""Results to pages: one a run, an index a study and one of all, failures first, with checklist and model cards.

Whole and offline: nothing is fetched. Pages are plain HTML, whole without a script; `template/page.js` adds what moves.
Unlike runs are never put in an order of merit. In an index, a cell that sorts as a number carries it in `value`.
"""

import base64
import functools
import hashlib
import html
import os
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from pneumolib import project
from pneumolib.data.layout import is_drawn
from pneumolib.errors import ParamsError, ResultError
from pneumolib.hosts import add_pages
from pneumolib.params import RunParams
from pneumolib.provenance import device_words, several_words
from pneumolib.reporting import prose
from pneumolib.reporting.cards import CARD_FILE, CHECKLIST_PAGE, checklist_page, model_card
from pneumolib.reporting.comparing import unlike
from pneumolib.reporting.prose import PROSE, headline, templates
from pneumolib.reporting.results import RESULT_FILE, Result, read_result
from pneumolib.study.inputs import BOOTSTRAP
from pneumolib.study.plan import Step
from pneumolib.text import printable

TEMPLATES = Path(__file__).parent / "template"
SCRIPT = (TEMPLATES / "page.js").read_text(encoding="utf-8")
# What a page may load: itself. A browser then refuses every address, and every script but ours, whatever an output asks for.
POLICY = (
    "default-src 'none'; img-src data: blob:; media-src data: blob:; font-src data:; style-src 'unsafe-inline'; script-src "
    f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'; base-uri 'none'; form-action 'none'"
)
FAILURE_FILE = "failure.txt"
STATES = ["failed", "unfinished", "out of date", "done"]  # in the order of the page: what needs a person comes first
_JINJA = templates("html", TEMPLATES)
_JINJA.globals |= {"policy": POLICY, "script": Markup(SCRIPT), "states": STATES}
DONE = "done"
_CODE = re.compile(r'<details class="code"(?: open)?>.*?</details>', re.DOTALL)
_HEADING = re.compile(r'<h([1-6])(?: id="[^"]+")?>(.*?)</h\1>', re.DOTALL)
_BAR = re.compile(r".*\d+%\|.*\| \d+/\d+ \[")
_NOISE = re.compile("|".join(re.findall("^[^#\n].*", (TEMPLATES / "noise.txt").read_text("utf-8"), re.MULTILINE)))


def write_run_page(step: Step) -> None:
    """The page of a finished run, from its executed notebook and `result.json`."""
    result = read_result(step.folder)
    trained = project.evaluated(step.run)
    other = "Network and training", trained
    if trained == step.run:
        other = "Figures, subgroups, robustness, errors", project.evaluation_of(step.run)
    links = [other] if step.page.with_name(f"{other[1]}.html").is_file() else []
    summary = _JINJA.get_template("summary.html.j2").render(lines=headline(result), links=links)
    made = result.provenance
    words = {"took": duration(made.seconds), "device": device_words(made.device)}
    made_of = _JINJA.get_template("made_of.html.j2").render(words, result=result, made=made)
    _write_notebook(step, step.folder, result.synthetic, summary, made_of=made_of, key=page_key(step))


def write_failed_page(step: Step, failed: Path, headline: str) -> None:
    """The page of a failed run: the error and the end of the log first, then the notebook as far as it came."""
    headline = printable(headline, "\n")
    last_lines = "\n".join(map(printable, (failed / "run.log").read_text("utf-8", "replace").splitlines()[-15:]))
    _write_notebook(step, failed, is_synthetic(step.params), failure=headline, last_lines=last_lines, key="failed")
    (failed / FAILURE_FILE).write_text(headline + "\n", encoding="utf-8")


def write_unfinished_page(step: Step, started: datetime) -> None:
    """The page in place while the run is at work, and after it was killed."""
    words = {"run": step.run, "started": f"{started:%Y-%m-%d %H:%M} UTC", "command": project.report_command(step.study)}
    _write(step.page, "unfinished.html.j2", step.study, synthetic=is_synthetic(step.params), **words)


def refresh(steps: list[Step], waiting: Sequence[str] = ()) -> int:
    """Write pages that are missing or older than their result or the template, and the indexes; count the pages."""
    finished = [s for s in steps if s.run not in waiting and (s.folder / RESULT_FILE).is_file()]
    late = [s for s in finished if not s.page.is_file() or f"key: {page_key(s)} " not in s.page.read_text("utf-8")]
    for step in late:
        write_run_page(step)
    write_index(steps[0].study, waiting)
    return len(late)


def page_key(step: Step) -> str:
    """Changes when the page would: with the result, the executed notebook, the templates, or the modules that write it."""
    parts = [step.folder / RESULT_FILE, step.folder / "executed.ipynb", Path(__file__), Path(prose.__file__)]
    parts += sorted(p for p in (*TEMPLATES.rglob("*"), *PROSE.glob("*")) if p.is_file())
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in parts)).hexdigest()[:16]


def _write_notebook(step: Step, folder: Path, synthetic: bool, summary: str = "", **words: Any) -> None:
    """The run's page by nbconvert with our template, `summary` under its title.

    Without cells where the run failed before the notebook was written.
    """
    # Imported here: nbconvert takes as long to load as the whole up-to-date check.
    add_pages(project.project_root())
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor
    from pygments.formatters import HtmlFormatter

    executed = folder / "executed.ipynb"
    whole = executed.is_file() and executed.read_text("utf-8").rstrip().endswith("}")  # a full disk cuts it short
    notebook = nbformat.read(executed, as_version=4) if whole else nbformat.v4.new_notebook()
    # First of all: a kernel sends a long line in several pieces.
    notebook, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})
    for cell in notebook.cells:
        cell.outputs = [output for output in cell.get("outputs", []) if _is_shown(output)]
    exporter = HTMLExporter(
        template_name="page",
        exclude_anchor_links=True,  # the table of contents has them
        filters={"with_contents": functools.partial(with_contents, summary=summary)},
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(TEMPLATES)],
        # The demo's values, which the injected ones replaced, would only confuse; so would what Colab needs.
        preprocessors=[TagRemovePreprocessor(enabled=True, remove_cell_tags={"parameters", BOOTSTRAP})],
    )
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("default", "github-dark"))
    page = {"study": step.study, "run": step.run, "policy": POLICY, "script": SCRIPT, "light": light, "dark": dark}
    page |= {"synthetic": synthetic, "smoke": step.study.endswith(project.SMOKE), **words}
    project.write_whole(step.page, exporter.from_notebook_node(notebook, resources={"page": page})[0])


def with_contents(page: str, summary: str = "") -> tuple[str, list[dict[str, str]]]:
    """The cells, and the table of contents: `level` 2 or 3, `link`, plain `words`.

    Headings get ids made of their words, because nbconvert makes them cell by cell, and the same one twice. Those of a section
    without text, figure or table go. `summary` comes under the first title.
    """
    seen, contents = Counter(), []

    def name(match: re.Match) -> str:
        level, words = match.groups()
        if level != "1" and _is_empty(match):
            return ""
        plain = html.unescape(re.sub("<[^>]+>", "", words)).strip()
        link = plain.replace(" ", "-")
        seen[link] += 1
        link += f"-{seen[link]}" if seen[link] > 1 else ""
        if level in "23":
            contents.append({"level": level, "link": "#" + quote(link), "words": plain})
        return f'<h{level} id="{html.escape(link)}">{words}</h{level}>'

    cells = _HEADING.sub(name, page)
    place = cells.find("</h1>") + len("</h1>") if "</h1>" in cells else 0
    return cells[:place] + summary + cells[place:], contents


def _is_empty(heading: re.Match) -> bool:
    """Whether nothing but code and other such headings follows, up to the next heading of its level or above."""
    page, start = heading.string, heading.end()
    end = next((h.start() for h in _HEADING.finditer(page, start) if h[1] <= heading[1]), len(page))
    shown = _HEADING.sub("", _CODE.sub("", page[start:end]))
    return not re.search("<(?:img|svg|video|audio)", shown) and not re.sub("<[^>]+>", "", shown).strip()


def _is_shown(output: Any) -> bool:
    """Take noise and progress bars out of a stream of errors; False where nothing is left. The log has both."""
    if output.get("name") != "stderr":
        return True
    lines = [line for line in re.split(r"[\r\n]+", output.text) if line.strip()]
    output.text = "\n".join(line for line in lines if not (_BAR.match(line) or is_noise(line)))
    return bool(output.text)


def is_noise(line: str) -> bool:
    """Whether a library's log line tells a reader nothing; `template/noise.txt` has the patterns."""
    return bool(_NOISE.match(line.lstrip()))


def is_synthetic(params: RunParams) -> bool:
    """Whether the images are drawn: by the parameters, or by the mark that a drawing carries wherever it is copied."""
    return params.data.source == "synthetic" or is_drawn(project.in_root(params.data.root))


def duration(seconds: float) -> str:
    """`19 s`, `2 min 16 s`, `1 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _write(path: Path, template: str, study: str | None = None, **words: Any) -> None:
    """A page from a file in `template/`; a word that the template needs and is not given is an error."""
    words |= {"study": study, "smoke": str(study).endswith(project.SMOKE)}
    project.write_whole(path, _JINJA.get_template(template).render(words))


def write_index(study: str, waiting: Sequence[str] = ()) -> None:
    """`reports/<study>/index.html`, its checklist and model cards, and `reports/index.html`.

    Args:
        study: its name.
        waiting: runs that are due and have not been reached; a result of theirs is out of date.
    """
    rows = _run_rows(study, waiting)
    results = [row["result"] for row in rows if row["result"]]
    synthetic = any(result.synthetic for result in results)
    index = {"rows": rows, "unlike": unlike(results), "checklist": CHECKLIST_PAGE}
    _write(project.in_root(f"reports/{study}/index.html"), "index.html.j2", study, synthetic=synthetic, **index)
    checked = checklist_page(study, results, [*map(project.evaluated, waiting)])
    _write(project.in_root(f"reports/{study}/{CHECKLIST_PAGE}"), "checklist.html.j2", synthetic=synthetic, **checked)
    # With what the study's audit found in the very same images.
    audits = {r.data.fingerprint: r.checks["audit"] for r in reversed(results) if "audit" in r.checks}
    for result in (r for r in results if r.metrics.get("test")):
        card = model_card(result, audits.get(result.data.fingerprint))
        project.write_whole(project.run_folder(study, result.run) / CARD_FILE, card)
    studies = sorted(p.parent.name for p in project.in_root("reports").glob("*/index.html"))
    rows = sorted((_study_row(name, waiting if name == study else ()) for name in studies), key=_urgency)
    _write(project.in_root("reports/index.html"), "index.html.j2", rows=rows, unlike=None, synthetic=False)


def _run_rows(study: str, waiting: Sequence[str]) -> list[dict[str, Any]]:
    """A training and its evaluation share a row."""
    runs = dict.fromkeys(map(project.evaluated, project.study_runs(project.params_folder(study))))
    return sorted((_run_row(study, run, waiting) for run in runs), key=_urgency)


def _urgency(row: dict[str, Any]) -> int:
    return STATES.index(row["chips"][0][0])


def _run_row(study: str, run: str, waiting: Sequence[str]) -> dict[str, Any]:
    """One line of a study's index; of a training and its evaluation, the state that needs a person more.

    `chips` are states with words for them, the one that needs a person most first. A cell has `text`, or `lines`.
    """
    runs = [run, project.evaluation_of(run)] if project.notebook_of(run) in project.TRAINING else [run]
    states, cells, results = zip(*(_state(study, name, waiting) for name in runs), strict=True)
    state = min(states, key=STATES.index)
    made, folder = [result for result in results if result], project.in_root(f"reports/{study}")
    return {
        "name": run,
        "links": [f"{name}.html" if (folder / f"{name}.html").is_file() else None for name in runs],
        "chips": [(state, state)],
        # What a failed evaluation said comes before the result of its training.
        "cells": [cells[0] if results[-1] else cells[-1] or cells[0], *_made_of(made)],
        "result": results[0],
        "found": cells[0].get("text", "").partition(". ")[0].rstrip(".") or DONE,
        "made": made,
    }


def _state(study: str, run: str, waiting: Sequence[str]) -> tuple[str, dict[str, Any], Result | None]:
    """State, a cell of what the run said, and its result: only a whole `result.json` counts as done."""
    try:
        result = read_result(project.run_folder(study, run))
    except ResultError as fault:
        failure = project.in_root(f"runs/{study}/.failed/{run}/{FAILURE_FILE}")
        if failure.is_file():
            return "failed", {"text": failure.read_text("utf-8", "replace").strip(), "kind": "what"}, None
        there = (project.run_folder(study, run) / RESULT_FILE).exists()  # and cannot be read
        words = str(fault).replace(f"{project.in_root('.')}{os.sep}", "")
        return "unfinished", {"text": words, "kind": "what"} if there else {}, None
    auroc = result.metric("auroc")
    # What an evaluation found is said by its training.
    lines = [] if result.notebook == project.EVALUATION else headline(result)
    said = {"text": "".join(lines[:1]), "value": auroc and auroc.value}
    return "out of date" if run in waiting else "done", said, result


def _study_row(study: str, waiting: Sequence[str]) -> dict[str, Any]:
    """One line of the index of all; a study whose parameter files are gone or faulty has no runs to show."""
    row = {"name": study, "links": [f"{study}/index.html"]}
    try:
        runs = _run_rows(study, waiting)
    except ParamsError:
        return row | {"chips": [("unfinished", "no parameter files")], "cells": [{}] * 6}
    made = [result for run in runs for result in run["made"]]
    count = Counter(state for run in runs for state, _ in run["chips"])
    kind = "synthetic" if any(result.synthetic for result in made) else "radiographs" if made else ""
    kind = "smoke run" if study.endswith(project.SMOKE) else kind
    cells = [{"text": kind}, {"lines": study_headline(study).splitlines()}, *_made_of(made)]
    return row | {"chips": [(state, f"{n} {state}") for state, n in count.items()], "cells": cells}


def _made_of(results: list[Result]) -> list[dict[str, Any]]:
    """Cells: how long, on what, by which code, from which images; of several runs all that differ."""
    made = [r.provenance for r in results]
    seconds = sum(p.seconds for p in made)
    commits = [(p.commit or "none")[:8] + (" + changes" if p.dirty else "") for p in made]
    devices = [f"{several_words(p.device)}{p.device['device']}" for p in made if p.device.get("device")]
    images = [r.data.fingerprint for r in results]
    device, commit, data = (", ".join(dict.fromkeys(words)) for words in (devices, commits, images))
    took = {"text": duration(seconds), "value": seconds} if results else {}
    return [took, {"text": device}, {"text": commit, "kind": "code"}, {"text": data, "kind": "code"}]


def study_headline(study: str) -> str:
    """What each run has to show, a line each, with the run's name."""
    lines = [f"{run}: {found}" for run, found, *_ in summaries(study) if found != DONE]
    return "\n".join(lines) or "no run has finished that has a result to show"


def summaries(study: str) -> list[tuple[str, str, str, str]]:
    """Each finished run: its name, the first sentence of its headline or `done`, how long it took, and its page."""
    try:
        rows = sorted((row for row in _run_rows(study, ()) if row["result"]), key=lambda row: row["name"])
    except ParamsError:  # a study whose parameter files are gone
        return []
    return [(row["name"], row["found"], row["cells"][1]["text"], f"reports/{study}/{row['name']}.html") for row in rows]
