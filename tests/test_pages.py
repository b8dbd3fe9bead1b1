"""Pages and pages as text: what stands where, from results and small notebooks written by hand. See test_browser."""

import base64
import html
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from conftest import Project
from pneumolib.errors import ResultError
from pneumolib.params import RunParams
from pneumolib.project import TRAINING, evaluation_of
from pneumolib.reporting.comparing import leaderboard
from pneumolib.reporting.results import DataResult, read_results, write_result
from pneumolib.study import pages
from pneumolib.study.plan import Step
from test_reporting import result

ROOT = "PNEUMOLIB_ROOT"
# Of TensorFlow 2.21; then what must not be hidden.
NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "E0000 00:00:1.2   10218 node_def_util.cc:682] NodeDef mentions attribute use_unbounded_threadpool which is not in the op definition: Op<",
    "2026-01-02 03:04:05.678901: I tensorflow/core/platform/cpu_feature_guard.cc:210] This TensorFlow binary is optimized",
    "I0000 00:00:1.2   10218 service.cc:152] XLA service 0x7f initialized for platform Host",
]
ERRORS = ["E0000 00:00:1.2   10218 cuda_executor.cc:1] failed to allocate 2.00GiB", "UserWarning: I0000 of mine"]
LONG = "a_path/without_a_place_to_break/" * 5


def png(width: int, height: int) -> str:
    """A grey ramp as base64."""
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def cards(name: str, number: int) -> str:
    """A block of images with captions, as the notebooks on errors and explanations show them."""
    card = '<figure class="card"><img src="data:image/png;base64,{}" alt="{} {}"><figcaption>case {}: called 0.93</figcaption></figure>'
    return f'<div class="{name}">{"".join(card.format(png(96, 96), name, i, i) for i in range(number))}</div>'


def notebook() -> nbformat.NotebookNode:
    """One cell of each kind of output; two headings of the same words."""
    table = "".join(f"<th>column {i}</th>" for i in range(12)), "".join(f"<td>value {i}</td>" for i in range(12))
    wide = f"<table><thead><tr>{table[0]}</tr></thead><tbody><tr>{table[1]}</tr></tbody></table>"
    verdicts = "".join(f'<tr><td class="verdict-{v}">{v}</td></tr>' for v in ("error", "warning", "note", "ok"))
    figure = {"image/png": png(880, 300)}, {"image/png": {"alt": "A ramp from black to white"}}
    error = nbformat.v4.new_output(
        "error", ename="ValueError", evalue="no", traceback=["\x1b[31mValueError\x1b[0m: no"]
    )
    cells = [
        "# A page", "Words with a [link](https://example.org).", _code("seed = 1", tags=["injected-parameters"]),
        "## The images", _code("x = 1  # a comment\nshow('text', 2.5)", _stream("stdout", "read 9 images\n")),
        _code(f"path = '{LONG}'", _stream("stdout", LONG)), _code("path", _html(f"<p>{LONG}</p>")), f"Read from {LONG}.",
        "### As *they* are", _code("figure()", nbformat.v4.new_output("display_data", figure[0], metadata=figure[1])),
        "## Training", _code("fit()", _stream("stdout", "".join(f"epoch {i}\n" for i in range(40)))),
        _code("warn()", _stream("stderr", NOISE[0][:60]), _stream("stderr", f"{NOISE[0][60:]}\na warning\n")), "### As *they* are", _code("table", _html(wide)),
        _code("verdicts", _html(f"<table>{verdicts}</table>")), "## Größe & \"errors\" < 5", _code("gallery", _html(cards("gallery", 5))),
        _code("maps", _html(cards("maps", 2))), _code("fail()", error), "## Nothing", _code("x = 2"), "### Nor here", _code("x = 3"), "## What it says", "Word. " * 800,
    ]  # fmt: skip
    cells = [nbformat.v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    return nbformat.v4.new_notebook(cells=cells)


def _code(source: str, *outputs, tags=()) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def _stream(name: str, text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name=name, text=text)


def _html(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("execute_result", {"text/html": text, "text/plain": "text"})


def finish(root: Path, study: str, run: str, seconds: float = 1.0, page: bool = False, **changes) -> None:
    """A finished run, and its page where one is asked for: indexes need none."""
    one = result(run, study=study, **changes)
    one = one.model_copy(update={"provenance": one.provenance.model_copy(update={"seconds": seconds})})
    folder = root / f"runs/{study}/{run}"
    folder.mkdir(parents=True, exist_ok=True)
    write_result(one, folder)
    if run.startswith(TRAINING):
        finish(root, study, evaluation_of(run), 0.0, **changes)
    if page:
        nbformat.write(notebook(), folder / "executed.ipynb")
        pages.write_run_page(Step(run, root / f"params/{study}/{run}.yaml", RunParams(study=study), {}))


def fail(root: Path, study: str, run: str, said: str) -> None:
    folder = root / f"runs/{study}/.failed/{run}"
    folder.mkdir(parents=True)
    (folder / "run.log").write_text("the log's last line\n", encoding="utf-8")
    nbformat.write(notebook(), folder / "executed.ipynb")
    pages.write_failed_page(Step(run, root / f"params/{study}/{run}.yaml", RunParams(study=study), {}), folder, said)


def study(project: Project, name: str, *runs: str) -> None:
    source = "synthetic, root: data/tiny" if name == "drawn" else "kaggle_folder, root: data/none"
    project.write(f"params/{name}/study.yaml", f"data: {{source: {source}}}\n")
    for run in runs:
        project.write(f"params/{name}/{run}.yaml", "")


def build_site(root: Path) -> Path:
    """Three studies' pages: `whole` with a failed run, `unlike` whose runs have different splits, `drawn`. Returns `reports/`."""
    project = Project(root)
    names = [f"03_baseline_cnn-{letter}" for letter in "abcd"]
    study(project, "whole", "01_quick", *names, "07_comparison")
    audit = {"a": {"verdict": "warning", "sentence": "Something."}}
    finish(root, "whole", "01_quick", 9, checks={"audit": audit}, metrics={}, threshold=None)
    for name, auroc, seconds in zip(names, (0.9, 0.7, 0.8), (75, 5000, 8.2), strict=False):
        finish(root, "whole", name, seconds, name == names[0], auroc=auroc)
    fail(root, "whole", names[3], f"cell 5: ValueError: <drawn> by hand, {LONG}")
    study(project, "unlike", "01_quick", *names[:2])
    finish(root, "unlike", names[0], split="split-one")
    finish(root, "unlike", names[1], split="split-two", auroc=0.8)
    study(project, "drawn", names[0])
    finish(root, "drawn", names[0], synthetic=True)
    for name in ("drawn", "unlike", "whole"):
        pages.write_index(name, waiting=["03_baseline_cnn-c"])
    return root / "reports"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("site")
        patch.setenv(ROOT, str(root))
        yield build_site(root)


def text(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


def rows(page: str) -> list[str]:
    """The names in an index's table, in its order."""
    return re.findall(r'<th scope="row">(?:<a[^>]*>)?([^<]+)', page)


def test_every_heading_is_in_the_contents_under_an_id_of_its_own(site):
    """A section without content has no heading."""
    page = text(site, "whole/03_baseline_cnn-a")
    links = re.findall(r'<li class="level-(\d)"><a href="#([^"]+)">([^<]+)</a>', page)
    assert links[1:4] == [
        ("3", "As-they-are", "As they are"),
        ("2", "Training", "Training"),
        ("3", "As-they-are-2", "As they are"),
    ]
    assert [words for *_, words in links[4:]] == [
        'Größe &amp; "errors" &lt; 5',
        "What it says",
        "How this page was made",
    ]
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {"The-images", "As-they-are", "As-they-are-2", "made-of"} <= set(ids)
    assert not {"Nothing", "Nor-here"} & set(ids)


def test_the_result_comes_first(site):
    """Under the title, before the words of the notebook; a page without a title has it too."""
    page = text(site, "whole/03_baseline_cnn-a")
    shown = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page[page.index("<h1") :]))
    assert shown.startswith(" A page AUROC: 0.900 (")
    assert pages.with_contents("<p>words</p>", "<b>result</b>")[0] == "<b>result</b><p>words</p>"


def test_a_page_is_light_and_lets_the_browser_load_nothing(site):
    """Nothing of lab's own style sheets (300 kB) comes along."""
    for page in site.rglob("*.html"):
        policy = html.unescape(re.search('content="(default-src[^"]+)"', page.read_text("utf-8"))[1])
        assert policy.startswith("default-src 'none'; ")
        assert re.search(r"script-src 'sha256-[^']+'; ", policy)  # that it is the script's is seen in a browser
        assert len(re.sub(r"base64,[^\"]+", "", page.read_text("utf-8"))) < 60_000


def test_failures_come_first_with_what_they_said_and_like_runs_can_be_sorted_by_result(site):
    page = text(site, "whole/index")
    assert rows(page) == ["03_baseline_cnn-d", "07_comparison", "03_baseline_cnn-c", "01_quick", "03_baseline_cnn-a", "03_baseline_cnn-b"]  # fmt: skip
    assert re.findall(r'class="chip \w+">([^<]+)', page) == ["failed", "unfinished", "out of date", *["done"] * 3]
    assert '<td data-label="Result" class="what">cell 5: ValueError: &lt;drawn&gt; by hand, a_path/' in page
    assert '<td data-label="Result" data-value="0.7">AUROC: 0.700 (' in page
    durations = re.findall(r'data-label="Duration" data-value="[\d.]+">([^<]+)', page)
    assert durations == ["8 s", "9 s", "1 min 15 s", "1 h 23 min"]
    assert '<th scope="col" data-sort>Result</th>' in page
    assert "not ranked" not in page


def test_no_line_of_a_library_is_shown_and_no_error_hidden(site):
    assert [line for line in NOISE + ERRORS if not pages.is_noise(line)] == ERRORS
    page = text(site, "whole/03_baseline_cnn-a")
    assert "a warning" in page
    assert "absl" not in page


OTHER = DataResult(fingerprint="e", images=9, groups=5, left_out=0, split_fingerprint="t")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "another"}, "split"),
        ({"parameters": {"seed": 1, "evaluation": {"resamples": 9}}}, "evaluation"),
        ({"data": OTHER}, "data and split"),
    ],
)
def test_unlike_runs_are_not_ranked_and_the_index_says_why(tmp_path, monkeypatch, changes, said):
    monkeypatch.setenv(ROOT, str(tmp_path))
    study(Project(tmp_path), "pair", "03_baseline_cnn-a", "03_baseline_cnn-b")
    finish(tmp_path, "pair", "03_baseline_cnn-a")
    finish(tmp_path, "pair", "03_baseline_cnn-b", **changes)
    pages.write_index("pair")
    page = text(tmp_path / "reports", "pair/index")
    with pytest.raises(ResultError, match="different data, splits or evaluation parameters cannot be ranked"):
        leaderboard(read_results("pair"))
    assert "These runs are not ranked" in page
    assert f"They differ in {said}, so their results cannot be compared" in page
    assert '<th scope="col">Result</th>' in page


def test_the_index_of_all_ranks_no_studies(site):
    page = text(site, "index")
    assert rows(page) == ["whole", "unlike", "drawn"]
    chips = re.findall(r'class="chip \w+">([^<]+)', page)
    assert chips[:4] == ["1 failed", "1 unfinished", "1 out of date", "3 done"]
    assert '<th scope="col">Results</th>' in page
    assert ">synthetic</td>" in page
    assert "<li>03_baseline_cnn-a: AUROC: 0.900 (" in page
