"""The notebooks themselves: what the audit and the page on equalisation say, and how one training continues another."""

import html
import re
import subprocess
import time

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from conftest import TINY_AUDIT, TINY_TRAINING, Project
from pneumolib.evaluation.calibration import Calibration
from pneumolib.evaluation.metrics import METRICS, PREDICTION_COLUMNS
from pneumolib.learning.callbacks import HISTORY_COLUMNS
from pneumolib.study.plan import plan

pytestmark = pytest.mark.slow  # trainings of whole notebooks


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Project:
    """The repository's notebooks and a tiny study of them, of which nothing has run yet."""
    project = Project(tmp_path_factory.mktemp("project"))
    (project.root / "params/tiny/03_baseline_cnn.yaml").unlink()  # test_by_hand runs it
    project.write("params/tiny/01_exploration.yaml", TINY_AUDIT)
    project.write(
        "params/tiny/02_histogram_equalisation.yaml",
        TINY_TRAINING + "model: {name: coursework_cnn}\n" + "equalisation: {score_test: true}\n",
    )
    return project


def page(study: Project, name: str) -> str:
    return (study.root / f"reports/tiny/{name}.html").read_text(encoding="utf-8")


def test_equalisation_is_measured_and_said_in_words(study):
    study.run("run", "params/tiny/02_histogram_equalisation.yaml")
    found = study.result("02_histogram_equalisation")["checks"]
    assert found["grey_distances"]["hist"]["shift_normal"] < found["grey_distances"]["none"]["shift_normal"]
    scores = pd.read_csv(study.root / "runs/tiny/02_histogram_equalisation/equalisation.csv")
    test = scores[(scores.split == "test") & (scores["equalize"] == "clahe")]
    auroc = roc_auc_score(test.label, test.probability)
    assert set(found["equalisation"]) == {"val", "test"}
    assert found["equalisation"]["test"]["clahe"]["auroc"] == pytest.approx(auroc, abs=1e-6)


def test_the_audit_is_in_the_result_and_on_the_page(study):
    study.run("run", "params/tiny/01_exploration.yaml")
    audit = study.result("01_exploration")["checks"]["audit"]
    assert {"duplicates", "metadata_only_cv", "border_only_test", "metadata_after_mitigations"} <= set(audit)
    text = html.unescape(page(study, "01_exploration"))
    assert [finding["sentence"] for finding in audit.values() if finding["sentence"] not in text] == []
    listed = pd.read_csv(study.root / "runs/tiny/01_exploration/sensitivity_exclusions.csv")
    split = pd.read_csv(study.root / "runs/tiny/01_exploration/split.csv")
    assert set(listed.image_id) <= set(split.image_id[split.split == "test"])


TINY_TRANSFER = """\
model: {name: transfer, backbone: backbone.keras, preprocess: unit}
features: {views: 1}
training: {epochs: 1, batch_size: 4, schedule: constant}
evaluation: {resamples: 50, seeds: [2], refer_fraction: 0.2}
robustness: {images: 4, corruptions: [margins]}
"""
TINY_FINE_TUNING = """\
fine_tuning: {unfreeze: all}
training: {epochs: 8, batch_size: 4, schedule: constant, patience_epochs: null, ema_momentum: 0.9}
evaluation: {resamples: 50}
robustness: {images: 0}
"""
TINY_EXTERNAL = """\
external:
  run: 04_transfer_learning
  data: {source: synthetic, hospital: 2, root: data/tiny-hospital-2, n_images: 24}
  recalibration_fraction: 0.5
"""


@pytest.fixture(scope="module")
def transferred(study) -> Project:
    """The study with a head trained on a frozen backbone."""
    pixels = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(8, 5, strides=4, activation="relu")(pixels)
    keras.Model(pixels, keras.layers.BatchNormalization()(features)).save(study.root / "backbone.keras")
    study.write("params/tiny/04_transfer_learning.yaml", TINY_TRANSFER)
    study.run("run", "params/tiny/04_transfer_learning.yaml")
    return study


def test_what_a_training_leaves(transferred):
    folder, result = transferred.root / "runs/tiny/04_transfer_learning", transferred.result("04_transfer_learning")
    predictions, split, history = (pd.read_csv(folder / f"{n}.csv") for n in ("predictions", "split", "history"))
    assert list(predictions.columns) == PREDICTION_COLUMNS
    np.testing.assert_allclose(predictions.probability, Calibration(**result["calibration"]).apply(predictions.logit))
    assert sorted(predictions.image_id) == sorted(split[split.split != "train"].image_id)
    assert (list(history.columns), len(history)) == (HISTORY_COLUMNS, 1)
    assert set(result["metrics"]["test"]) == set(METRICS)
    assert result["threshold"]["chosen_on"] == result["calibration"]["chosen_on"] == "validation"
    assert result["checks"].keys() >= {"confusion", "calibration", "predictive_values", "subgroups", "robustness",
                                      "test_openings", "risk_coverage", "precision", "stratified"}  # fmt: skip
    assert result["threshold"]["refer_low"] < result["threshold"]["value"] < result["threshold"]["refer_high"]
    assert result["provenance"]["device"]["batch"] == 4
    assert {"keras", "numpy", "papermill"} <= result["provenance"]["versions"].keys()


def test_a_frozen_model_in_another_hospital(transferred, monkeypatch):
    """Nothing is written where what was frozen stands, and nothing is ranked; then it is up to date."""
    study = transferred
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(study.root))
    study.write("params/tiny/08_external_validation.yaml", TINY_EXTERNAL)
    said = study.run("run", "params/tiny/08_external_validation.yaml")
    assert "08_external_validation  04_transfer_learning" in said
    result, model = study.result("08_external_validation"), study.result("04_transfer_learning")
    assert (result["threshold"], result["calibration"], result["metrics"]) == (None, None, {})
    found = result["checks"]["external"]
    assert found["threshold"] == model["threshold"]["value"]
    predictions = pd.read_csv(study.root / "runs/tiny/08_external_validation/predictions.csv")
    own = pd.read_csv(study.root / "runs/tiny/04_transfer_learning/predictions.csv")
    auroc = roc_auc_score(predictions.label, predictions.probability)
    before = roc_auc_score(*(own[own.split == "test"][name] for name in ("label", "probability")))
    row = next(row for row in found["differences"] if row["metric"] == "auroc")
    assert (row["external"], row["difference"]) == pytest.approx((auroc, auroc - before))
    assert "<dt>Other source</dt>" in page(study, "08_external_validation")
    step = plan(study.root / "params/tiny")[-1]
    assert (step.run, step.reasons) == ("08_external_validation", [])
    (study.root / "params/tiny/08_external_validation.yaml").unlink()


def test_transfer_then_fine_tuning_which_is_killed_and_goes_on(transferred):
    """A real `report`, killed in the middle of a training; the next one takes it up."""
    study = transferred
    study.write("params/tiny/05_fine_tuning.yaml", TINY_FINE_TUNING)
    command = study.command("run", "params/tiny/05_fine_tuning.yaml")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=study.root, env=study.environment(), **quiet)
    kept = study.root / "runs/tiny/trainings/05_fine_tuning/checkpoint.npz"
    until = time.monotonic() + 120
    while not kept.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()
    study.run("run", "params/tiny/05_fine_tuning.yaml")
    assert re.search(r"Taken up after epoch \d+ from", page(study, "05_fine_tuning"))
    result = study.result("05_fine_tuning")
    before = study.result("04_transfer_learning")
    assert before["spread"]["test"]["auroc"]["seeds"] == 2
    assert [row["corruption"] for row in before["checks"]["robustness"]] == ["none"] + ["margins"] * 5
    assert before["facts"]["trainable_parameters"] == 9  # eight pooled features and a bias
    assert result["facts"]["trainable_parameters"] == 5 * 5 * 3 * 8 + 8 + 9  # BatchNormalization stays frozen
    study.run("run", "params/tiny/07_comparison.yaml")
    assert len(pd.read_csv(study.root / "runs/tiny/07_comparison/leaderboard.csv")) == 2
    for file in (study.root / "reports/tiny").glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert "Synthetic." in text
        assert "Figure without a description" not in text
        assert not [word for word in ('src="http', 'href="http', "src='http", "@import", "url(http") if word in text]
        assert len(text) < 3_000_000
    # A parameter that decides no training: the run is due, and its training is kept.
    seconds = pd.read_csv(study.root / "runs/tiny/05_fine_tuning/history.csv").seconds.tolist()
    study.write("params/tiny/05_fine_tuning.yaml", TINY_FINE_TUNING.replace("resamples: 50", "resamples: 60"))
    study.run("run", "params/tiny/05_fine_tuning.yaml")
    assert study.result("05_fine_tuning")["parameters"]["evaluation"]["resamples"] == 60
    assert pd.read_csv(study.root / "runs/tiny/05_fine_tuning/history.csv").seconds.tolist() == seconds
