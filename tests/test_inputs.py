"""What counts as a change: content, never time; and only for the runs it concerns."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import REPO
from pneumolib.params import ParamsError, RunParams
from pneumolib.reporting import inputs
from pneumolib.reporting.study import Step, still_due

BASELINE = """
import pneumolib as pn
pn.learning.build_model(1, 2)
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the package that a test may edit; returns a function that replaces text in one of its files."""
    copy = tmp_path / "pneumolib"
    shutil.copytree(REPO / "pneumolib", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(inputs, "PACKAGE", copy)

    def edit(file: str, old: str, new: str):
        path = copy / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def test_the_reach_of_each_notebook(project, monkeypatch):
    reach = {}
    for name in ("01_exploration", "03_baseline_cnn", "06_comparison"):
        cells = inputs.read_cells(project.root / f"notebooks/{name}.ipynb")
        reach[name] = set(inputs.library_digests(inputs.python_code(cells)))
    assert "pneumolib.learning.fitting" in reach["03_baseline_cnn"]
    assert not any(".learning." in module for module in reach["01_exploration"] | reach["06_comparison"])
    assert "pneumolib.data.pipeline" not in reach["01_exploration"]
    assert not any("synthetic" in m or "drawing" in m for modules in reach.values() for m in modules)
    for modules in reach.values():
        assert {"pneumolib.params", "pneumolib.data.manifest", "pneumolib.reporting.session"} <= modules
        # How runs are executed and pages are written changes no result.
        assert not modules & {f"pneumolib.reporting.{name}" for name in ("run", "pages", "indexes", "shell", "study")}


def test_code_counts_comments_docstrings_and_layout_do_not(library):
    before = inputs.library_digests(BASELINE)
    library("learning/networks.py", '"""The networks:', '"""These are the networks:')
    library("learning/networks.py", "import keras\n", "# a comment\nimport   keras\n")
    assert inputs.library_digests(BASELINE) == before
    library("learning/networks.py", "(512, 0.7)", "(512, 0.6)")
    after = inputs.library_digests(BASELINE)
    assert [m for m in after if after[m] != before[m]] == ["pneumolib.learning.networks"]


def test_changes_behind_imports_count(library):
    before = inputs.library_digests(BASELINE)
    library("params.py", "size_px: Annotated[int, Field(ge=32", "size_px: Annotated[int, Field(ge=8")
    after = inputs.library_digests(BASELINE)
    assert [m for m in after if after[m] != before[m]] == ["pneumolib.params"]


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("import pneumolib as pn\npn.data.read_manifest(1)", "data.manifest"),
        ("import pneumolib\npneumolib.data.read_manifest(1)", "data.manifest"),
        ("from pneumolib.data import read_manifest", "data.manifest"),
        ("from pneumolib.data.manifest import read_manifest", "data.manifest"),
        ("import pneumolib.data.manifest", "data.manifest"),
        ("from pneumolib import learning", "learning.fitting"),
        ("import pneumolib as pn\nroom = pn.learning", "learning.fitting"),
        ("import pneumolib as pn\npn.start('x')", "reporting.session"),
        ("import pneumolib as pn\npn.reporting.plots.roc(1, 2)", "reporting.plots"),
        ("import pneumolib as pn\npn.data.something_unknown(1)", "data.synthetic"),
    ],
)
def test_every_way_to_name_the_library_is_followed(code, module):
    assert f"pneumolib.{module}" in inputs.library_digests(code)


def test_the_commit_in_the_first_cell_does_not_count(project):
    """A bundle writes its own there; what it leaves must not be due at home."""
    path = project.root / "notebooks/06_comparison.ipynb"
    params, before = RunParams(), inputs.read_cells(path)
    old = inputs.gather("06_comparison", params, "f", {})

    def stamp(notebook):
        cell = next(c for c in notebook["cells"] if "bootstrap" in c["metadata"].get("tags", []))
        cell["source"] = "".join(cell["source"]).replace('"main"', '"0123abc"')

    project.edit_notebook("06_comparison", stamp)
    assert inputs.read_cells(path) != before
    new = inputs.gather("06_comparison", params, "f", {})
    assert new == old
    assert not [module for module in new["library"] if module in ("pneumolib.kept_runs", "pneumolib.host_packages")]
    assert len(new["notebook"]) == len(before)  # so that messages name the cells that the author sees


def test_outputs_and_counts_of_a_notebook_do_not_count(project):
    path = project.root / "notebooks/06_comparison.ipynb"
    before = inputs.read_cells(path)

    def run_by_hand(notebook):
        notebook["metadata"]["widgets"] = {}
        code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        code[0] |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]}

    project.edit_notebook("06_comparison", run_by_hand)
    assert inputs.read_cells(path) == before
    project.edit_notebook("06_comparison", lambda n: n["cells"][3]["metadata"].update(tags=["new"]))
    assert inputs.read_cells(path) != before


def test_differences_name_what_changed():
    old = {"parameters": {"training.epochs": 5, "seed": 1}, "notebook": ["a", "b"], "library": {"m": "1", "n": "1"},
           "data": "d1", "packages": {"keras": "3.15.1"}, "upstream": {"03_x": "u"}}  # fmt: skip
    assert inputs.differences(old, json.loads(json.dumps(old))) == []
    new = {"parameters": {"training.epochs": 6, "seed": 1}, "notebook": ["a", "c", "d"], "library": {"m": "2", "n": "1"},
           "data": "d2", "packages": {"keras": "3.16"}, "upstream": {"03_x": "v"}}  # fmt: skip
    assert inputs.differences(old, new) == [
        "parameter training.epochs: 5 -> 6",
        "notebook: cell 2 changed",
        "library: m changed",
        "data changed: fingerprint d1 -> d2",
        "package keras: 3.15.1 -> 3.16",
        "03_x has other results",
    ]
    assert inputs.differences(old, old | {"notebook": ["a", "b", "c"]}) == ["notebook: cell 3 changed"]
    assert inputs.differences({}, new) == ["no record of what it was made from"]


def test_magics_and_slips_do_not_stop_the_check(project):
    cells = [{"type": "code", "tags": [], "source": "%matplotlib inline\n!ls\nimport pneumolib as pn\npn.learning.fit"}]
    assert "pneumolib.learning.fitting" in inputs.library_digests(inputs.python_code(cells))
    assert "pneumolib.learning.fitting" in inputs.library_digests("def broken(:")


@pytest.mark.parametrize("line", ["seed = 1 + n", "a, b = 1, 2", "seed += 1", "print(1)", "seed ="])
def test_a_parameters_cell_holds_plain_values(project, line):
    def change(notebook):
        cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
        cell["source"] = [line]

    project.edit_notebook("06_comparison", change)
    with pytest.raises(ParamsError, match=r"06_comparison\.ipynb: the parameters cell may hold"):
        inputs.declared_parameters(project.root / "notebooks/06_comparison.ipynb")


def test_exactly_one_parameters_cell(project):
    def untag(notebook):
        for cell in notebook["cells"]:
            cell["metadata"].pop("tags", None)

    project.edit_notebook("06_comparison", untag)
    with pytest.raises(ParamsError, match="exactly one cell tagged `parameters`, found 0"):
        inputs.declared_parameters(project.root / "notebooks/06_comparison.ipynb")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nbformat": 4}'])
def test_a_notebook_that_is_none_is_named(tmp_path, text):
    (tmp_path / "03_broken.ipynb").write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match=r"03_broken\.ipynb: not a notebook"):
        inputs.read_cells(tmp_path / "03_broken.ipynb")


def test_what_is_still_due():
    def step(name, upstream=(), reasons=()):
        return Step(Path(f"params/x/{name}.yaml"), RunParams(), {}, list(upstream), list(reasons))

    explore, train = step("01_exploration", reasons=["FORCE=1"]), step("03_baseline_cnn", reasons=["parameter"])
    compare = step("06_comparison", upstream=["03_baseline_cnn"])
    assert still_due([explore, train, compare], []) == ["01_exploration", "03_baseline_cnn"]
    assert still_due([explore, train, compare], [train]) == ["01_exploration", "06_comparison"]
    assert still_due([explore, train, compare], [explore, train, compare]) == []
