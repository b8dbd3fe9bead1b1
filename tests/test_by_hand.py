"""A person can run each notebook by hand, and what that leaves is apart from the runs of a study."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import Project


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Project:
    """The repository's notebooks, and a finished run that nothing here may touch."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.run("run", "params/tiny/01_quick.yaml")
    return project


@pytest.fixture
def by_hand(study, monkeypatch):
    """A shell of a person who has set nothing; afterwards no run of a study has been touched."""
    for variable in ("PNEUMOLIB_ROOT", "PNEUMOLIB_RUN", "PNEUMOLIB_FOLDER"):
        monkeypatch.delenv(variable, raising=False)
    before = {file: file.stat().st_mtime_ns for file in study.root.glob("runs/tiny/*/result.json")}
    assert before
    yield
    assert {file: file.stat().st_mtime_ns for file in study.root.glob("runs/tiny/*/result.json")} == before


def execute(path, cwd) -> None:
    """As JupyterLab does: a kernel in `cwd`, the cells from top to bottom."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(cwd)}}, timeout=400).execute()


def shrink(study, name: str, less: dict[str, str]) -> None:
    """Write `less` values into a notebook's parameters cell: `make report` runs it with all of them."""

    def change(notebook):
        cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
        cell["source"] = "".join(cell["source"])
        for much, little in less.items():
            assert much in cell["source"]
            cell["source"] = cell["source"].replace(much, little)

    study.edit_notebook(name, change)


FEWER = {'"n_images": 400': '"n_images": 40'}  # the same in all notebooks, so that the demo's data is drawn once
FEWER_SPLIT = FEWER | {"2.0}": "25.0}", '"size_px": 64': '"size_px": 32'}


FEWER_TRAINED = FEWER_SPLIT | {
    '"epochs": 20': '"epochs": 1',
    '"target_sensitivity"': '"resamples": 50, "target_sensitivity"',
}
ROBUSTNESS = {'"images": 100': '"images": 2, "corruptions": ["gamma"]'}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "less"),
    [
        ("07_comparison", ".", FEWER),
        ("03_baseline_cnn", "notebooks", FEWER_TRAINED),
        ("06_evaluation", "notebooks", FEWER | ROBUSTNESS),
    ],
)
def test_notebooks_run_by_hand_from_any_folder(study, by_hand, name, folder, less):
    """With the demo's values, but less of everything. An evaluation completes the result of the training before it."""
    shrink(study, name, less)
    execute(study.root / f"notebooks/{name}.ipynb", study.root / folder)
    result = json.loads((study.root / f"runs/interactive/{name}/result.json").read_text(encoding="utf-8"))
    assert result["study"] == "demo"
    if name == "06_evaluation":
        trained = json.loads((study.root / "runs/interactive/03_baseline_cnn/result.json").read_text(encoding="utf-8"))
        assert trained["metrics"] == result["metrics"]
        assert trained["metrics"]["test"]["auroc"]["value"] is not None
        assert (trained["notebook"], result["notebook"]) == ("03_baseline_cnn", "06_evaluation")


def test_open_gives_a_copy_with_the_runs_parameters(study, by_hand):
    said = study.run("open", "tiny/01_quick", "--no-browser")
    assert "runs/interactive/tiny-01_quick.ipynb" in said
    copy = study.root / "runs/interactive/tiny-01_quick.ipynb"
    execute(copy, copy.parent)
    result = json.loads((study.root / "runs/interactive/01_quick/result.json").read_text(encoding="utf-8"))
    assert (result["study"], result["parameters"]["image"]["size_px"]) == ("tiny", 32)
    assert "tiny-01_quick-2.ipynb" in study.run("open", "tiny/01_quick", "--no-browser")
    assert "no such file" in study.run("open", "tiny/99_none", "--no-browser", code=2)
