"""Results, tables and plots on their own, without running a notebook."""

import json
from datetime import UTC, datetime

import jsonschema
import pandas as pd
import pytest

from conftest import REPO
from pneumolib.errors import ResultError
from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import PublishedParams
from pneumolib.reporting import comparison_plots, evaluation_plots, words
from pneumolib.reporting.published_words import published_summary, published_table
from pneumolib.reporting.ranking import leaderboard
from pneumolib.reporting.results import (
    DataResult,
    MetricResult,
    Provenance,
    Result,
    SpreadResult,
    ThresholdResult,
    in_words,
    metrics_of,
    read_result,
    read_results,
    result_schema,
    write_result,
)
from pneumolib.study import pages
from pneumolib.study.run import Progress


def result(run="03_baseline_cnn", auroc=0.9, split="s1", **changes) -> Result:
    now = datetime.now(UTC)
    metrics = metrics_of(pd.DataFrame({"metric": METRICS, "value": auroc, "low": auroc - 0.1, "high": auroc + 0.05}))
    values = {
        "schema_version": 2, "study": "x", "run": run, "notebook": "03_baseline_cnn", "synthetic": False, "parameters": {"seed": 1},
        "data": DataResult(fingerprint="d", images=9, groups=5, left_out=0, split_fingerprint=split),
        "threshold": ThresholdResult(value=0.4, rule="r", sensitivity=0.95, specificity=0.9, chosen_on="validation"),
        "metrics": {"validation": metrics, "test": metrics},
        "facts": {"parameters": 5, "floors_exceeded": True, "best_epoch": 2, "epochs": 3, "training_seconds": 90.0, "test_images": 624, "milliseconds_per_image": 2.0},
        "provenance": Provenance(commit=None, dirty=None, started=now, finished=now, seconds=1, python="3", platform="p",
                                 versions={}, device={}),
    }  # fmt: skip
    return Result(**(values | changes))


def test_a_result_survives_the_disk(tmp_path):
    one = result()
    write_result(one, tmp_path)
    assert read_result(tmp_path) == one


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    wrong = result().model_copy(
        update={
            "threshold": ThresholdResult.model_construct(
                value=1.5, rule="r", sensitivity=1.0, specificity=1.0, chosen_on="validation"
            )
        }
    )
    with pytest.raises(ResultError, match=r"threshold\.value"):
        write_result(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_published_schema_is_the_one_that_results_are_checked_by(tmp_path):
    """Valid JSON for one is valid for the other, and what one refuses, so does the other."""
    published = json.loads((REPO / "docs/result.schema.json").read_text(encoding="utf-8"))
    assert published == result_schema(), "docs/result.schema.json is old: pneumolib schema > docs/result.schema.json"
    jsonschema.Draft202012Validator.check_schema(published)
    good = json.loads(write_result(result(), tmp_path).read_text(encoding="utf-8"))
    jsonschema.validate(good, published)
    for path, value in {
        ("threshold", "chosen_on"): "test",
        ("threshold", "value"): 1.5,
        ("metrics", "test", "auroc", "value"): 1.2,
        ("metrics", "test", "mcc", "value"): -1.2,
        ("metrics", "test", "log_loss", "low"): -0.1,
        ("metrics", "train"): {},
        ("schema_version",): 1,
        ("surprise",): 1,
        ("threshold", "sensitivity"): "0.4",
        ("data", "images"): True,
    }.items():
        bad = json.loads(json.dumps(good))
        part = bad
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, published)
        (tmp_path / "result.json").write_text(json.dumps(bad))
        with pytest.raises(ResultError):
            read_result(tmp_path)


def test_what_a_schema_cannot_say_is_checked_too():
    with pytest.raises(ValueError, match="needed are both in this order, or neither"):
        MetricResult(value=0.5, low=0.6, high=0.4)
    with pytest.raises(ValueError, match="metrics of test need the threshold"):
        result(threshold=None)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        result(
            spread={"test": {"auroc": SpreadResult(seeds=2, mean=7, low=None, high=None, sd=0, lowest=0, highest=1)}}
        )
    with pytest.raises(ValueError, match="no metric of this run"):
        result(
            spread={"test": {"luck": SpreadResult(seeds=2, mean=0.5, low=None, high=None, sd=0, lowest=0, highest=1)}}
        )
    for part in ("threshold", "schema_version"):
        lacking = json.loads(result().model_dump_json())
        (lacking["threshold"] if part == "threshold" else lacking).pop({"threshold": "chosen_on"}.get(part, part))
        with pytest.raises(jsonschema.ValidationError, match="is a required property"):
            jsonschema.validate(lacking, result_schema())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "threshold",
            {"value": 0.4, "rule": "r", "sensitivity": 1, "specificity": 1, "chosen_on": "test"},
            "chosen_on",
        ),
        ("metrics", {"test": {"auroc": {"value": 1.2, "low": None, "high": None}}}, "less than or equal to 1"),
        ("surprise", 1, "surprise"),
    ],
)
def test_what_a_result_cannot_say(tmp_path, key, value, said):
    """Above all: a threshold chosen on test."""
    file = write_result(result(), tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ResultError, match=said):
        read_result(tmp_path)


def test_missing_and_broken_results(tmp_path):
    with pytest.raises(ResultError, match="has not finished"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ResultError, match=r"result\.json"):
        read_result(tmp_path)


def test_results_of_runs_that_are_no_more_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    for run in ("03_baseline_cnn", "03_baseline_cnn-old"):
        (tmp_path / "runs/x" / run).mkdir(parents=True)
        write_result(result(run), tmp_path / "runs/x" / run)
    (tmp_path / "params/x").mkdir(parents=True)
    (tmp_path / "params/x/03_baseline_cnn.yaml").write_text("")
    assert [r.run for r in read_results("x")] == ["03_baseline_cnn"]


def test_leaderboard_is_ordered_by_validation():
    low, high = result("a", 0.7), result("b", 0.9)
    best_on_test = low.model_copy(update={"metrics": {"validation": low.metrics["test"], "test": high.metrics["test"]}})
    board = leaderboard([best_on_test, high])
    assert board.run.tolist() == ["b", "a"]
    assert words.leaderboard_words(board).set_index("Run").loc["b", "AUROC"] == "0.900 (0.800-0.950)"
    assert "b** is the best of 2 runs on validation" in words.comparison_summary(board, "x").data


def test_a_run_of_several_seeds_stands_with_their_mean():
    spread = {
        name: SpreadResult(seeds=3, mean=0.8, low=0.7, high=0.9, sd=0.01, lowest=0.79, highest=0.81) for name in METRICS
    }
    seeds = result(
        "lucky",
        0.95,
        spread={"validation": spread, "test": spread},
        parameters={"evaluation": {"seeds": [2, 3], "resamples": 50, "confidence": 0.95}},
    )
    board = leaderboard(
        [seeds, result("plain", 0.85, parameters={"evaluation": {"seeds": [], "resamples": 50, "confidence": 0.95}})]
    )
    assert board.run.tolist() == ["plain", "lucky"]
    assert board.auroc.tolist() == [0.85, 0.8]
    assert board.seeds.tolist() == [1, 3]
    said = words.result_summary(seeds).data
    assert "The test AUROC is **0.950" in said  # of the network at hand, whose threshold it is
    assert "one seed of 3, whose mean is **0.800 (0.700-0.900)**" in said
    shown = words.leaderboard_words(board).set_index("Run")
    assert shown.loc["lucky", "AUROC"] == "0.800 (0.700-0.900)"
    assert shown.loc["lucky", "Seeds"] == "mean of 3, SD 0.010"
    with pytest.raises(ResultError, match="evaluation parameters cannot be ranked"):
        leaderboard([seeds, result("other", parameters={"evaluation": {"resamples": 60, "confidence": 0.95}})])


def test_runs_of_other_splits_or_synthetic_ones_are_not_ranked_together():
    for other in (result("b", split="s2"), result("b", synthetic=True)):
        with pytest.raises(ResultError, match="different data, splits"):
            leaderboard([result("a"), other])


def test_an_empty_study_has_an_empty_board():
    board = leaderboard([])
    assert board.empty
    assert words.show(words.leaderboard_words(board), empty="no run").data == "<p>no run</p>"
    assert "make report STUDY=x" in words.comparison_summary(board, "x").data
    assert "no finished training run" in comparison_plots.forest(board).alt


PUBLISHED = PublishedParams(
    source="their paper",
    other_data=["theirs"],
    figures={"theirs": {"auroc": 0.968}, "b": {"accuracy": 0.97, "auroc": 0.7}, "a": {"accuracy": 0.65}},
)


def test_published_figures_stand_beside_ours():
    table = published_table(leaderboard([result("a", 0.7), result("b", 0.9), result("c", 0.8)]), PUBLISHED)
    assert table.to_numpy().tolist() == [
        ["theirs", "published", "other data", "0.968", ""],
        ["b", "published", "official test", "0.700", "0.970"],
        ["b", "measured", "official test", "0.900 (0.800-0.950)", "0.900 (0.800-0.950)"],
        ["a", "published", "official test", "", "0.650"],
        ["a", "measured", "official test", "0.700 (0.600-0.750)", "0.700 (0.600-0.750)"],
        ["c", "measured", "official test", "0.800 (0.700-0.850)", "0.800 (0.700-0.850)"],
    ]
    assert table.columns.tolist() == ["System or run", "Figures", "Test set", "AUROC", "Accuracy"]
    block = result("d").model_copy(update={"facts": result().facts | {"test_images": 312}})
    assert published_table(leaderboard([block]), PUBLISHED)["Test set"].iloc[-1] == "other data, 312 images"


def test_what_lies_between_published_figures_and_ours_is_said():
    said = published_summary(leaderboard([result("a", 0.7), result("b", 0.9)]), PUBLISHED).data
    assert "**b**: AUROC 0.900, published 0.700 (+0.200, the published one lies below our interval); accuracy" in said
    assert "accuracy 0.900, published 0.970 (-0.070, the published one lies above our interval)." in said
    assert "**a**: accuracy 0.700, published 0.650 (+0.050, the published one lies within our interval)." in said
    assert "theirs" not in said
    assert "Source: their paper. Published figures come from other splits" in said


def test_published_figures_without_ours_and_ours_without_published():
    board = leaderboard([result("c")])
    assert "No finished run of this study repeats a published one." in published_summary(board, PUBLISHED).data
    assert len(published_table(leaderboard([]), PUBLISHED)) == 3
    nothing = PublishedParams()
    assert published_table(board, nothing).empty
    assert published_summary(board, nothing).data == ""
    none = MetricResult(value=None, low=None, high=None)
    part = result("a").metrics["test"]
    other = result("a", metrics={"validation": part, "test": part | {"accuracy": none}})
    assert "accuracy not computable, published 0.650" in published_summary(leaderboard([other]), PUBLISHED).data


def test_the_headline_of_each_kind_of_run():
    none = {"metrics": {}, "threshold": None}
    ways = {"hist": {"difference": -0.149}, "clahe": {"difference": None}}
    audit = {
        "a": {"verdict": "error"},
        "b": {"verdict": "warning"},
        "c": {"verdict": "warning"},
        "d": {"verdict": "ok"},
    }
    assert pages.headline(result()) == "test AUROC 0.900 (0.800-0.950)"
    equalised = result(checks={"equalisation": {"test": ways}}, **none)
    assert pages.headline(equalised) == "test AUROC HE -0.149, CLAHE not computable"
    assert pages.headline(result(checks={"audit": audit}, **none)) == "audit: 1 error, 2 warnings"
    assert pages.headline(result(checks={"audit": {}}, **none)) == "audit: nothing to warn of"
    assert pages.headline(result(**none)) == ""
    spread = SpreadResult(seeds=3, mean=0.85, low=0.8, high=0.9, sd=0.01, lowest=0.84, highest=0.86)
    several = result(spread={"test": {"auroc": spread}})
    assert pages.headline(several) == "test AUROC 0.850 (0.800-0.900), mean of 3 seeds"


def test_the_headline_of_a_study(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    assert pages.study_headline("x-smoke") == "no run has finished that has a result to show"
    (tmp_path / "params/x").mkdir(parents=True)
    for run, changes in {"01_a": {"metrics": {}}, "03_b": {"synthetic": True}}.items():
        (tmp_path / f"params/x/{run}.yaml").write_text("")
        (tmp_path / "runs/x-smoke" / run).mkdir(parents=True)
        write_result(result(run, study="x-smoke", **changes), tmp_path / "runs/x-smoke" / run)
    assert pages.study_headline("x-smoke") == "03_b: test AUROC 0.900 (0.800-0.950), synthetic"


def test_what_cannot_be_computed_says_so():
    table = pd.DataFrame([{"metric": "auroc", "value": 0.8, "low": float("nan"), "high": float("nan")},
                          {"metric": "ppv", "value": float("nan"), "low": float("nan"), "high": float("nan")}])  # fmt: skip
    entries = metrics_of(table)
    assert in_words(entries["auroc"]) == "0.800 (interval not computable)"
    assert in_words(entries["ppv"]) == "not computable"


def test_a_plot_shows_itself_with_alt_text():
    counts = {"tp": 5, "fp": 1, "tn": 7, "fn": 0}
    data, metadata = evaluation_plots.confusion_matrix(counts)._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert "5 true and 1 false calls" in metadata["image/png"]["alt"]


def test_progress_keeps_the_last_state_of_a_line(tmp_path, capsys):
    log = tmp_path / "run.log"
    with Progress("[1/2]", "demo", log) as progress:
        progress.say("cell 1/2  Start")
        for piece in ("read", "ing:  50%\rreading: 100%", "\n\x1b[31mred\x1b[0m\nunfinished"):
            progress.write(piece)
    lines = [line.split(" s  ")[1] for line in log.read_text().splitlines()]
    assert lines == ["[1/2] demo  cell 1/2  Start", "    reading: 100%", "    red", "    unfinished"]
    assert "reading: 100%" in capsys.readouterr().out
