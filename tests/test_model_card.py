"""Model cards and checklists say what results say, and no more. No TensorFlow here."""

import re
from html import unescape

import pytest

from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import AugmentParams, check
from pneumolib.reporting.cards import CARD_FILE, checklist, model_card, sections
from pneumolib.reporting.prose import fact
from pneumolib.reporting.results import CalibrationResult, DataResult, SpreadResult, write_result
from pneumolib.study import pages
from test_reporting import result as any_result

PARAMETERS = {
    "data": {"source": "kaggle_folder"}, "image": {"size_px": 64, "fit": "crop", "crop_border": 0.05},
    "training": {"epochs": 7, "keep_best": ["auroc"]}, "evaluation": {"resamples": 1234, "seeds": [5, 6]},
}  # fmt: skip
AUDIT = {
    "groups_across_splits": {"verdict": "ok", "sentence": "None of 5 groups crosses."},
    "metadata_only_cv": {"verdict": "warning", "sentence": "Facts of the file reach an AUROC of 0.957."},
}
EVERYTHING = {
    "confusion": {"tp": 41, "fp": 7, "tn": 23, "fn": 2},
    "split": [{"split": name, "images": 73, "groups": 31, "pneumonia": 43} for name in ("train", "val", "test")],
    "calibration": [{"method": "platt", "chosen": True, "brier": 0.123, "slope": 0.8, "slope_low": 0.51, "slope_high": 1.11,
                     "intercept": -0.1, "intercept_low": -0.41, "intercept_high": 0.21}],
    "subgroups": [{"part": name, "images": images, "pneumonia": 40, "groups": 9, "auroc": 0.77, "auroc_low": 0.7, "auroc_high": None}
                  for name, images in (("all", 73), ("unrelated to training (a|b)", 61), ("site small", 49))],
    "robustness": [{"corruption": "none", "severity": 0, "auroc": 0.9, "auroc_change": None, "auroc_change_low": None},
                   {"corruption": "blur", "severity": 3, "auroc": 0.6, "auroc_change": -0.3, "auroc_change_low": -0.4,
                    "auroc_change_high": -0.2}],
    "permutation": {"mean": 0.501, "low": 0.402, "high": 0.603, "p": 0.001},
    "predictive_values": [{"prevalence": 0.1, "ppv": 0.31, "ppv_low": 0.2, "ppv_high": 0.4, "npv": 0.99}],
    "explanation": {"occlusion": {"images": 1200, "border_more": 9}},
    "continues": "04_transfer_learning",
}  # fmt: skip
FACTS = {"parameters": 1234567, "trainable_parameters": 1200000, "epochs": 7, "best_epoch": 6, "floors_exceeded": True,
         "training_seconds": 90.0, "weights_sha256": "ab" * 32, "milliseconds_per_image": 1.25}  # fmt: skip


def result(run="03_baseline_cnn", auroc=0.9, **changes):
    """As that of `test_reporting`, with figures as `result.json` has them: each metric is checked as its own kind."""
    metrics = {name: {"value": auroc, "low": auroc - 0.1, "high": auroc + 0.05} for name in METRICS}
    return any_result(run, **({"metrics": {"validation": metrics, "test": metrics}} | changes))


def trained(run="03_baseline_cnn", **changes):
    """A training run with all its checks, on the archive's images."""
    platt = CalibrationResult(
        method="platt", slope=0.812, intercept=-0.104, logits=(), probabilities=(), chosen_on="validation"
    )
    parameters = check({"study": "x", **PARAMETERS}).model_dump()
    values = {"parameters": parameters, "facts": FACTS, "checks": EVERYTHING, "calibration": platt}
    return result(run, **(values | changes))


def explored(**checks):
    none = {"notebook": "01_exploration", "metrics": {}, "threshold": None}
    return result("01_exploration", **none, checks={"audit": AUDIT} | checks)


def section(card: str, name: str) -> str:
    return card.split(f"\n## {name}\n")[1].split("\n## ")[0].strip()


def rows(results, study="x"):
    return {row["key"]: row["answer"] for row in checklist(study, results)}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("Model details", "1,234,567 weights, 1,200,000 of them trained, 34,567 frozen"),
        ("Data", "5.0% cut off each side, cropped to the square of the middle, resized to 64 x 64 px"),
        ("Decision", "Platt scaling: the sigmoid of 0.812 x logit -0.104; fitted on validation"),
        ("Results", "| pneumonia | 41 | 7 |\n| normal | 2 | 23 |"),
        ("Results", "| AUROC | 0.881 (0.800 to 0.900) | 0.012 | 0.870 to 0.893 |"),
        ("Subgroups", "(a&#124;b) | 61 | 40 | 9 | 0.770 (no interval) |"),
        ("Robustness", "| none | 0 | 0.900 |  |  |  |\n| blur | 3 | 0.600 | -0.300 (-0.400 to -0.200) |"),
        ("Calibration on test", "| platt (used) | 0.1230 | not computable | 0.800 (0.510 to 1.110) | -0.100 (-0.410"),
        ("Explanation", "Covering the border moves the logit more than covering the middle in 9 of 1200 images"),
    ],
)
def test_the_numbers_of_a_card_are_those_of_its_result(part, said):
    spread = {"auroc": SpreadResult(seeds=3, mean=0.881, low=0.8, high=0.9, sd=0.012, lowest=0.87, highest=0.893)}
    one = trained(spread={"test": spread})
    assert said in section(model_card(one, AUDIT), part)
    assert rows([one])["seeds"].lines[0].startswith("3 seeds: test AUROC 0.881 (0.800 to 0.900) on average, SD 0.012")


def test_the_code_of_a_card_reads_an_image_as_training_did(archive):
    """Run as far as it goes without Keras: the image that it hands to the network."""
    code = re.search(r"```python\n(.*?)```", model_card(trained()), re.S)[1]
    file = next(archive.rglob("*.jpeg"))
    kept = [line for line in code.splitlines() if not re.search(r"keras|model\.|logit|probability", line)]
    names = {}
    exec("\n".join(kept).replace('"radiograph.jpeg"', repr(str(file))), names)
    assert names["pixels"].shape == (64, 64, 1)
    assert names["image"].model_dump() == trained().parameters["image"]


def test_what_a_result_does_not_hold_is_not_available():
    card = model_card(result(facts={}, checks={}))
    for name in ("Robustness", "Subgroups", "Calibration on test", "Permutation test", "Explanation", "How to load it"):
        assert section(card, name) == "Not available.", name
    assert "**Weights**: not available" in card
    assert "Guangzhou" not in card
    assert "shortcuts may be present" in section(card, "Limitations")
    assert model_card(result(synthetic=True, study="x-smoke")).splitlines()[2].startswith("> **Smoke run. Synthetic.**")


def test_a_card_names_the_augmentation_that_changes_something():
    changes = {"flip": True, "crop_area": [0.35, 1.4], "gamma_factor": 1.8, "noise_sd": 0.0}
    for asked, said in (
        (changes, "flip, gamma_factor 1.8, crop_area 0.35 to 1.4, crop_aspect 0.75 to 1.33333"),
        ({}, "none"),
    ):
        parameters = {"augment": AugmentParams(**asked).model_dump()}
        found = fact("augment", any_result(parameters=parameters))
        assert sorted(found.split(", ")) == sorted(said.split(", "))


def test_what_is_known_of_the_archive_is_said_of_no_other_images():
    own = check({"data": {"source": "csv", "root": "t.csv"}}).model_dump()
    assert "Guangzhou" in model_card(trained())
    for other in (trained(synthetic=True), trained(parameters=own)):
        assert not re.search("Guangzhou|Kermany|physicians graded", model_card(other))
        said = " ".join(line for row in checklist("x", [other]) for line in row["answer"].lines)
        assert not re.search("Guangzhou|Kermany|physicians graded", said)


def test_every_item_of_both_checklists_is_asked_and_answered_once():
    items = [pair for part in sections().values() for pair in part.items()]
    assert {n for _, item in items for n in item.get("claim", [])} == set(range(1, 45))
    tripod = [number for _, item in items for number in item.get("tripod", [])]
    assert {re.sub("[a-z]", "", number) for number in tripod} == {str(n) for n in range(1, 28)}
    assert len(set(tripod)) == 52  # with sub-items
    assert len({key for key, _ in items}) == len(items)
    kinds = [[way for way in ("author", "answer", "archive", "each", "computed") if way in item] for _, item in items]
    assert all(len(ways) == 1 for ways in kinds)


def test_a_checklist_follows_its_results():
    both = rows([explored(), trained()])
    assert both["disjoint"].status == "answered"
    assert "Audit: None of 5 groups crosses." in both["disjoint"].lines
    assert "2 of 43 test images with pneumonia classified as normal, 7 of 30" in both["failures"].lines[0]
    assert "worst: blur, severity 3, AUROC -0.300 (-0.400 to -0.200)." in both["robustness"].lines[0]
    assert "intercept -0.100 (-0.410 to +0.210), ECE not computable" in both["calibration"].lines[0]
    assert both["performance"].runs == ["03_baseline_cnn"]
    assert "error 0, warning 1." in " ".join(both["limitations"].lines)
    crossing = AUDIT | {"groups_across_splits": {"verdict": "error", "sentence": "2 groups cross."}}
    assert rows([explored(audit=crossing), trained()])["disjoint"].status == "in part"
    assert rows([trained()])["disjoint"].status == "in part"
    bare = rows([trained(checks={})])
    assert {bare[key].status for key in ("robustness", "calibration", "subgroups", "failures")} == {"not available"}


def test_runs_that_differ_are_told_apart_and_a_silent_one_leaves_a_gap():
    two = [trained("a", auroc=0.8), trained("b", auroc=0.9, checks={})]
    told = rows(two)
    assert [line[:25] for line in told["internal"].lines] == ["a: validation AUROC 0.800", "b: validation AUROC 0.900"]
    assert "Best of 2: b, validation AUROC 0.900." in told["selection"].lines
    assert told["calibration"].status == "in part"
    assert told["calibration"].lines[1] == "b: not available."
    assert {row["answer"].status for row in checklist("x", [])} == {"not available", "for the author"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    (tmp_path / "params/x").mkdir(parents=True)
    (tmp_path / "params/x/study.yaml").write_text("data: {source: kaggle_folder, root: data/none}\n")
    for run in ("01_exploration", "03_baseline_cnn"):
        (tmp_path / f"params/x/{run}.yaml").write_text("")
    return tmp_path


def finish(root, one) -> None:
    (root / "runs/x" / one.run).mkdir(parents=True, exist_ok=True)
    write_result(one, root / "runs/x" / one.run)


def test_the_page_is_written_with_the_index(root):
    page = root / "reports/x/checklist.html"
    pages.write_index("x")
    assert "No training run has finished yet" in page.read_text()
    finish(root, explored())
    finish(root, trained())
    pages.write_index("x", waiting=["03_baseline_cnn"])
    text = page.read_text()
    for said in ("Out of date and due again: 03_baseline_cnn.", '<a href="03_baseline_cnn.html">03_b', "Research only"):
        assert said in text
    assert text.count('class="chip ') == len(checklist("x", []))
    for row in checklist("x", [explored(), trained()]):
        assert f'id="{row["key"]}"' in text
        assert all(line in unescape(text) for line in row["answer"].lines), row["key"]
    pages.write_index("x")
    assert "Out of date" not in page.read_text()


def test_a_training_has_its_card_and_other_runs_none(root):
    """Written with the index; the audit is taken from an exploration of the very same images, and from no other."""
    card, one = root / "runs/x/03_baseline_cnn" / CARD_FILE, trained()
    others = DataResult(fingerprint="other", images=2, groups=2, left_out=0)
    finish(root, one)
    finish(root, explored().model_copy(update={"data": others}))
    pages.write_index("x")
    assert "No audit of these images" in card.read_text()
    finish(root, explored())
    pages.write_index("x")
    assert card.read_text() == model_card(one, AUDIT)
    assert not (root / "runs/x/01_exploration" / CARD_FILE).exists()
