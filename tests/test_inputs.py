"""What counts as a change: content, never time; and only for the runs it concerns."""

import json
from pathlib import Path

import pytest

from pneumolib.errors import ParamsError
from pneumolib.params import RunParams, check
from pneumolib.study.inputs import SOURCES, declared_parameters, differences, gather, library_digests, read_cells

HANDS_OUT = "import lazy_loader\n__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={})\n"
MANIFEST = '"""Which images?"""\nfrom pneumolib.data.sources import listed\nfrom pneumolib.data.layout import SPLITS\n'
FITTING = '"""How is it fitted?"""\n\n\ndef fit(rate=0.1):\n    """Fit."""\n    from pneumolib.params import EPOCHS\n'
LIBRARY = {
    "__init__": HANDS_OUT.format(json.dumps({"report.session": ["start"]})), "params": "EPOCHS = 3\n", "__main__": "",
    "data/__init__": HANDS_OUT.format(json.dumps({"manifest": ["read_manifest"]})), "data/manifest": MANIFEST, "data/layout": "SPLITS = 3\n",
    "data/sources": "from pneumolib.data.drawing import draw\n", "data/drawing": "",
    "learning/__init__": HANDS_OUT.format(json.dumps({"fitting": ["fit"]})), "learning/fitting": FITTING, "learning/explain": "",
    "report/__init__": HANDS_OUT.format(json.dumps({})), "report/session": "import numpy\n", "report/plots": "",
}  # fmt: skip


@pytest.fixture
def library(tmp_path) -> Path:
    """A small library of the same form as ours."""
    for module, text in LIBRARY.items():
        file = tmp_path / f"pneumolib/{module}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "pneumolib"


READING, FIT = {"data.manifest", "data.layout"}, {"learning.fitting", "params"}
EVERYTHING = {"params", "data.manifest", "data.layout", "data.drawing", "learning.fitting", "learning.explain",
              "report.session", "report.plots"}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import pneumolib as pn\npn.data.read_manifest(1).table.head()", READING),
        ("def later():\n    from pneumolib.data.manifest import read_manifest", READING),
        ("from pneumolib import learning", {*FIT, "learning.explain"}),
        ("import pneumolib as pn\npn.report.plots.roc(1, 2)", {"report.plots"}),
        ("import pneumolib as pn\npn.data.something_unknown(1)", {*READING, "data.drawing"}),
        ("from pneumolib.learning import *", {*FIT, "learning.explain"}),
        ("import numpy as np  # for `pneumolib report`\ndata.read_manifest", set()),
        ("%matplotlib inline\n!ls\nimport pneumolib as pn\npn.learning.fit", FIT),
        ("import numpy as np, pneumolib as p", EVERYTHING),
        ("getattr(pn, name)", EVERYTHING),
    ],
)
def test_every_way_to_name_the_library_is_followed(library, code, modules):
    """All but how images are listed, which concerns a run through the images alone."""
    reached = library_digests(code, library)
    assert {name.removeprefix("pneumolib.") for name in reached if "__" not in name} == modules


@pytest.mark.parametrize(
    ("module", "text", "changed"),
    [
        ("learning/fitting", "# a comment\n" + FITTING.replace("Fit.", "Fit it.").replace("0.1)", "\n    0.1)"), []),
        ("learning/explain", "not_reached = 1", []),
        ("learning/fitting", FITTING.replace("0.1", "0.2"), ["pneumolib.learning.fitting"]),
        ("params", "EPOCHS = 4\n", ["pneumolib.params"]),
    ],
)
def test_code_counts_comments_docstrings_and_layout_do_not(library, module, text, changed):
    code = "import pneumolib as pn\npn.learning.fit()"
    before = library_digests(code, library)
    (library / f"{module}.py").write_text(text, encoding="utf-8")
    after = library_digests(code, library)
    assert [m for m in after if after[m] != before[m]] == changed


def test_the_reach_of_the_repository_s_notebooks():
    for name in ("01_exploration", "03_baseline_cnn", "07_comparison"):
        modules = gather(name, RunParams(), "f", {})["library"].keys()
        assert any(".learning." in module for module in modules) == (name == "03_baseline_cnn")
        assert {"pneumolib.params", "pneumolib.data.manifest"} <= modules
        # How images are drawn, runs are executed and pages are written changes no result.
        assert not [m for m in modules if m.startswith(("pneumolib.study.", "pneumolib.data.synth", SOURCES))]


def test_what_counts_of_a_notebook(project, monkeypatch):
    """Not its outputs, and not the commit in its first cell: a bundle writes its own, and what it leaves is not due at home."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(project.root))
    path, params = project.root / "notebooks/07_comparison.ipynb", RunParams()
    old, cells = gather("07_comparison", params, "f", {}), read_cells(path)

    def edit(notebook):
        notebook["metadata"]["widgets"] = {}
        code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        code[1] |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]}
        first = next(c for c in code if "bootstrap" in c["metadata"]["tags"])
        first["source"] = "".join(first["source"]).replace('"main"', '"0123abc"')

    project.edit_notebook("07_comparison", edit)
    assert read_cells(path) != cells
    assert gather("07_comparison", params, "f", {}) == old
    # How large a file may be decides which images are read, and those the fingerprint knows.
    other = check({"data": {"max_megapixels": 5, "max_file_mb": 1}, "external": {"data": {"max_file_mb": 2}}})
    assert gather("07_comparison", other, "f", {}) == old
    project.edit_notebook("07_comparison", lambda n: n["cells"][3]["metadata"].update(tags=["new"]))
    assert differences(old, gather("07_comparison", params, "f", {})) == ["notebook: cell 4 changed"]


def test_differences_name_what_changed():
    old = {"parameters": {"training.epochs": 5, "seed": 1}, "notebook": ["a", "b"], "library": {"m": "1", "n": "1"},
           "data": "d1", "packages": {"keras": "3.15.1"}, "upstream": {"03_x": "u"}}  # fmt: skip
    assert differences(old, json.loads(json.dumps(old))) == []
    new = {"parameters": {"training.epochs": 6, "seed": 1, "ema": None}, "notebook": ["a", "c", "d"], "library": {"m": "2", "n": "1"},
           "data": "d2", "packages": {"keras": "3.16"}, "upstream": {"03_x": "v"}}  # fmt: skip
    assert "; ".join(differences(old, new)) == (
        "parameter ema: none -> None; parameter training.epochs: 5 -> 6; notebook: cell 2 changed; library: m changed; "
        "data changed: fingerprint d1 -> d2; package keras: 3.15.1 -> 3.16; 03_x has other results"
    )
    assert differences({}, new) == ["no record of what it was made from"]


PARAMETERS = '{"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["%s"]}]}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((PARAMETERS % line, "the parameters cell may hold lines of the form") for line in ("seed = 1 + n", "seed =")),
        ('{"cells": []}', "needs exactly one cell tagged `parameters`, found 0"),
        *((text, "not a notebook") for text in ("", "{", "[]", '{"nbformat": 4}')),
    ],
)
def test_a_notebook_that_cannot_be_run_is_named(tmp_path, text, said):
    path = tmp_path / "03_broken.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match=rf"03_broken\.ipynb: {said}"):
        declared_parameters(path)
