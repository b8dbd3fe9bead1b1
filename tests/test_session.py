"""The run that a fine-tuning continues: taken only where it saw the same images and the same split."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from pneumolib import provenance
from pneumolib.errors import ResultError
from pneumolib.params import check
from pneumolib.reporting.results import write_result
from pneumolib.reporting.session import FOLDER_VARIABLE, RUN_VARIABLE, start, table_fingerprint
from test_reporting import result

SPLIT = pd.DataFrame({"image_id": ["a", "b"], "split": ["train", "val"]})


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    return tmp_path


DEVICE = {"device": "CPU", "precision": "float32"}


def finished(root, run: str, folder: str = "runs/demo", **values) -> None:
    """A run that left a result, made from these parameters and `SPLIT`."""
    parameters = json.loads(check(values).model_dump_json())
    one = result(run, study="demo", notebook=run, synthetic=True, parameters=parameters)
    one = one.model_copy(update={
        "data": one.data.model_copy(update={"split_fingerprint": table_fingerprint(SPLIT)}),
        "provenance": one.provenance.model_copy(update={"device": DEVICE}),
    })  # fmt: skip
    (root / folder / run).mkdir(parents=True)
    write_result(one, root / folder / run)


def session(root, monkeypatch, run: str | None = None, **values):
    if run:
        monkeypatch.setenv(RUN_VARIABLE, run)
        monkeypatch.setenv(FOLDER_VARIABLE, str(root / "runs/demo/.work"))
    return start("05_fine_tuning", **values)


def test_the_run_of_the_same_variant_is_continued(root, monkeypatch):
    finished(root, "04_transfer_learning-a")
    finished(root, "04_transfer_learning-b")
    before = session(root, monkeypatch, "05_fine_tuning-b").continued(SPLIT, DEVICE)
    assert before.result.run == "04_transfer_learning-b"
    assert before.model_file == root / "runs/demo/04_transfer_learning-b/model.keras"
    with pytest.raises(ResultError, match=r"04_transfer_learning-c has not finished: looked for .*-c/result\.json"):
        session(root, monkeypatch, "05_fine_tuning-c").continued(SPLIT, DEVICE)


def test_by_hand_no_variant_is_guessed(root, monkeypatch):
    finished(root, "04_transfer_learning-a")
    with pytest.raises(ResultError, match="Run notebook 04_transfer_learning first, or `make report STUDY=demo`"):
        session(root, monkeypatch).continued(SPLIT, DEVICE)
    finished(root, "04_transfer_learning", "runs/interactive")
    assert session(root, monkeypatch).continued(SPLIT, DEVICE).folder == root / "runs/interactive/04_transfer_learning"


@pytest.mark.parametrize(
    ("values", "split", "device", "said"),
    [
        ({"image": {"size_px": 64}}, SPLIT, DEVICE, "was trained on images prepared otherwise"),
        ({}, SPLIT, DEVICE | {"precision": "mixed_float16"}, "trained in float32 on CPU, and this run computes in"),
        ({}, SPLIT.assign(split=["val", "train"]), DEVICE, "its training images may be scored here"),
    ],
)
def test_other_images_another_split_or_precision_are_refused(root, monkeypatch, values, split, device, said):
    finished(root, "04_transfer_learning")
    with pytest.raises(ResultError, match=said):
        session(root, monkeypatch, "05_fine_tuning", **values).continued(split, device)


def test_each_opening_of_test_is_written_down_and_counted(root, capsys):
    images = pd.DataFrame({"image_id": ["a", "b"], "sha256": ["1", "2"], "label": [0, 1]})
    others = images.assign(sha256=["1", "3"])
    found = [
        start("06_evaluation", study="demo").open_test(data)["before"] for data in (images, others, images, images)
    ]
    assert found == [0, 0, 1, 2]
    assert "opened 2 time(s) before: runs/test_openings.csv" in capsys.readouterr().out
    ledger = pd.read_csv(root / "runs/test_openings.csv")
    assert ledger.columns.tolist() == ["started", "commit", "uncommitted_changes", "study", "run", "data", "before"]
    assert ledger.data.duplicated().tolist() == [False, False, True, True]
    assert set(ledger.study + " " + ledger.run) == {"demo 06_evaluation"}


def test_the_commit_of_a_project_that_is_no_checkout(tmp_path, monkeypatch):
    """A bundle says it; pip wrote it down where the library was installed from a repository."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    told = SimpleNamespace(read_text=lambda name: '{"vcs_info": {"vcs": "git", "commit_id": "abc"}}')
    monkeypatch.setattr(provenance, "distribution", lambda name: told)
    assert provenance.provenance_of_checkout() == ("abc", False)
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "def" + provenance.CHANGED)
    assert provenance.provenance_of_checkout() == ("def", True)
