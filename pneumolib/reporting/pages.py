"""Results to pages: one HTML file a run. Whole and offline: nothing is fetched."""

import hashlib
import html
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from pneumolib.learning.devices import device_words
from pneumolib.project import report_command
from pneumolib.reporting import shell
from pneumolib.reporting.indexes import FAILURE_FILE, write_index
from pneumolib.reporting.inputs import BOOTSTRAP
from pneumolib.reporting.results import RESULT_FILE, Result, SourceResult, read_result
from pneumolib.reporting.shell import TEMPLATES, banners, duration, is_synthetic, render, write_page
from pneumolib.reporting.study import Step

# Whose text decides what a page looks like, beside the template.
MODULES = [Path(__file__), Path(shell.__file__)]
HEADING = re.compile(r'<h([1-6])(?: id="([^"]+)")?>(.*?)</h\1>', re.DOTALL)


def write_run_page(step: Step) -> None:
    """The page of a finished run, from its executed notebook and `result.json`."""
    result = read_result(step.folder)
    context = {"banners": banners(step.study, result.synthetic), "facts": _made_of(result), "key": page_key(step)}
    write_page(step.page, _render_notebook(step, step.folder / "executed.ipynb", context))


def write_failed_page(step: Step, failed: Path, headline: str) -> None:
    """The page of a failed run: the error and the end of the log first, then the notebook as far as it came."""
    (failed / FAILURE_FILE).write_text(headline + "\n", encoding="utf-8")
    log = (failed / "run.log").read_text(encoding="utf-8").splitlines()
    context = {"failure": headline, "last_lines": "\n".join(log[-15:]), "key": "failed",
               "banners": banners(step.study, is_synthetic(step.params))}  # fmt: skip
    write_page(step.page, _render_notebook(step, failed / "executed.ipynb", context))


def write_unfinished_page(step: Step, started: datetime) -> None:
    """What stands in the page's place while the run is at work, and after it was killed."""
    words = {"study": step.study, "run": step.run, "started": f"{started:%Y-%m-%d %H:%M} UTC",
             "command": report_command(step.study), "banners": banners(step.study, is_synthetic(step.params))}  # fmt: skip
    write_page(step.page, render("unfinished.html.j2", **words))


def refresh(steps: list[Step], waiting: Sequence[str] = ()) -> int:
    """Write pages that are missing or older than their result or the template, and the indexes; count the pages."""
    finished = [s for s in steps if s.run not in waiting and (s.folder / RESULT_FILE).is_file()]
    late = [s for s in finished if _key_on_page(s.page) != page_key(s)]
    for step in late:
        write_run_page(step)
    write_index(steps[0].study, waiting)
    return len(late)


def page_key(step: Step) -> str:
    """Changes when the page would: with the result, the executed notebook, the template, or `MODULES`."""
    parts = [step.folder / RESULT_FILE, step.folder / "executed.ipynb", *MODULES]
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
        exclude_anchor_links=True,  # the table of contents has them; ids are given by `with_ids`
        filters={"with_ids": with_ids, "headings": headings},
        extra_template_basedirs=[str(TEMPLATES)],
        preprocessors=[
            CoalesceStreamsPreprocessor(enabled=True),
            # The demo's values, which the injected ones replaced, would only confuse; so would what Colab needs.
            TagRemovePreprocessor(enabled=True, remove_cell_tags={"parameters", BOOTSTRAP}),
        ],
    )
    page = {"study": step.study, "run": step.run, "title": step.run, "css": shell.style() + _highlight_css(),
            "script": shell.script(), "policy": shell.POLICY, **context}  # fmt: skip
    return exporter.from_notebook_node(notebook, resources={"page": page})[0]


def with_ids(page: str) -> str:
    """Give every heading an id made of its words; nbconvert makes them cell by cell, and the same one twice."""
    seen = Counter()

    def name(match: re.Match) -> str:
        level, _, words = match.groups()
        link = _plain(words).replace(" ", "-")
        seen[link] += 1
        link += f"-{seen[link]}" if seen[link] > 1 else ""
        return f'<h{level} id="{html.escape(link)}">{words}</h{level}>'

    return HEADING.sub(name, page)


def headings(page: str) -> list[dict[str, str]]:
    """The table of contents: `level` 2 or 3, `link` and plain `words` of those headings, in their order."""
    return [
        {"level": level, "link": "#" + quote(html.unescape(name)), "words": _plain(words)}
        for level, name, words in HEADING.findall(page)
        if name and level in "23"
    ]


def _plain(words: str) -> str:
    return html.unescape(re.sub("<[^>]+>", "", words)).strip()


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
    other = {"Other source": _source_words(result.data.external)} if result.data.external else {}
    return {
        "Commit": commit,
        "Run": f"{p.started:%Y-%m-%d %H:%M} UTC, {duration(p.seconds)}",
        "Device": device_words(p.device),
        "Data": _source_words(result.data),
        **other,
        "Seed": str(result.parameters["seed"]),
        "Versions": f"Python {p.python}, " + ", ".join(f"{k} {v}" for k, v in p.versions.items()),
    }


def _source_words(source: SourceResult) -> str:
    return f"fingerprint {source.fingerprint}, {source.images} images of {source.groups} groups, {source.left_out} files left out"


def _highlight_css() -> str:
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("default", "github-dark"))
    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"
    return f"{light}\n{dark}\n.highlight {{ background: none !important; }}"
