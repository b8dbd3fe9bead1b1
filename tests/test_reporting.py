"""Results, tables and plots on their own, without running a notebook."""

import json
from contextlib import closing
from datetime import UTC, datetime

import jsonschema
import nbformat
import pandas as pd
import pytest

from conftest import REPO
from pneumolib.errors import ResultError
from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import PublishedParams
from pneumolib.reporting import evaluation_plots, words
from pneumolib.reporting.comparing import leaderboard, published_summary, published_table
from pneumolib.reporting.results import (
    DataResult,
    MetricResult,
    Provenance,
    Result,
    SpreadResult,
    ThresholdResult,
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
        "schema_version": 3, "study": "x", "run": run, "notebook": "03_baseline_cnn", "synthetic": False, "parameters": {"seed": 1},
        "data": DataResult(fingerprint="d", images=9, groups=5, left_out=0, split_fingerprint=split),
        "threshold": ThresholdResult(value=0.4, rule="r", sensitivity=0.95, specificity=0.9, chosen_on="validation"),
        "metrics": {"validation": metrics, "test": metrics},
        "facts": {"parameters": 5, "floors_exceeded": True, "best_epoch": 2, "epochs": 3, "training_seconds": 90.0, "test_images": 624, "milliseconds_per_image": 2.0},
        "provenance": Provenance(commit=None, dirty=None, started=now, finished=now, seconds=1, python="3", platform="p",
                                 versions={}, device={}),
    }  # fmt: skip
    return Result(**(values | changes))


def test_a_result_survives_the_disk_and_what_could_not_be_read_is_not_written(tmp_path):
    one = result()
    wrong = one.model_copy(update={"threshold": one.threshold.model_copy(update={"value": 1.5})})
    with pytest.raises(ResultError, match=r"threshold\.value"):
        write_result(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_result(one, tmp_path)
    assert read_result(tmp_path) == one


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
    del good["threshold"]["chosen_on"]
    with pytest.raises(jsonschema.ValidationError, match="is a required property"):
        jsonschema.validate(good, published)


def seeds_of(mean: float, low: float | None, high: float | None, sd: float, **changes) -> SpreadResult:
    return SpreadResult(seeds=3, mean=mean, low=low, high=high, sd=sd, lowest=mean - sd, highest=mean + sd)


def test_what_a_schema_cannot_say_is_checked_too():
    with pytest.raises(ValueError, match="needed are both in this order, or neither"):
        MetricResult(value=0.5, low=0.6, high=0.4)
    with pytest.raises(ValueError, match="metrics of test need the threshold"):
        result(threshold=None)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        result(spread={"test": {"auroc": seeds_of(7, None, None, 0)}})
    with pytest.raises(ValueError, match="no metric of this run"):
        result(spread={"test": {"luck": seeds_of(0.5, None, None, 0)}})


def test_missing_and_broken_results(tmp_path):
    with pytest.raises(ResultError, match="has not finished"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ResultError, match=r"result\.json"):
        read_result(tmp_path)


def test_leaderboard_is_ordered_by_validation():
    low, high = result("a", 0.7), result("b", 0.9)
    best_on_test = low.model_copy(update={"metrics": {"validation": low.metrics["test"], "test": high.metrics["test"]}})
    board = leaderboard([best_on_test, high])
    assert board.run.tolist() == ["b", "a"]
    assert words.leaderboard_words(board).set_index("Run").loc["b", "AUROC"] == "0.900 (0.800-0.950)"
    assert "b** is the best of 2 runs on validation" in words.comparison_summary(board, "x").data


def test_a_run_of_several_seeds_stands_with_their_mean():
    spread = dict.fromkeys(METRICS, seeds_of(0.8, 0.7, 0.9, 0.01))
    rules = {"resamples": 50, "confidence": 0.95}
    seeds = result(
        "lucky",
        0.95,
        spread={"validation": spread, "test": spread},
        parameters={"evaluation": rules | {"seeds": [2, 3]}},
    )
    board = leaderboard([seeds, result("plain", 0.85, parameters={"evaluation": rules | {"seeds": []}})])
    assert board.run.tolist() == ["plain", "lucky"]
    assert board.auroc.tolist() == [0.85, 0.8]
    assert board.seeds.tolist() == [1, 3]
    said = words.result_summary(seeds).data
    assert "The test AUROC is **0.950" in said  # of the network at hand, whose threshold it is
    assert "one seed of 3, whose mean is **0.800 (0.700-0.900)**" in said
    shown = words.leaderboard_words(board).set_index("Run").loc["lucky"]
    assert (shown.AUROC, shown.Seeds) == ("0.800 (0.700-0.900)", "mean of 3, SD 0.010")
    with pytest.raises(ResultError, match="evaluation parameters cannot be ranked"):
        leaderboard([seeds, result("other", parameters={"evaluation": rules | {"resamples": 60}})])


def test_runs_of_other_splits_or_synthetic_ones_are_not_ranked_together():
    for other in (result("b", split="s2"), result("b", synthetic=True)):
        with pytest.raises(ResultError, match="different data, splits"):
            leaderboard([result("a"), other])


def test_an_empty_study_has_an_empty_board():
    board = leaderboard([])
    assert board.empty
    assert words.show(words.leaderboard_words(board), empty="no run").data == "<p>no run</p>"
    assert "make report STUDY=x" in words.comparison_summary(board, "x").data
    assert "no finished training run" in evaluation_plots.forest(board).alt


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "test AUROC 0.900 (0.800-0.950)"),
        ({"checks": {"equalisation": {"test": {"hist": {"difference": -0.149}, "clahe": {"difference": None}}}}},
         "test AUROC HE -0.149, CLAHE not computable"),
        ({"checks": {"audit": {n: {"verdict": v} for n, v in zip("abcd", ("error", "warning", "warning", "ok"), strict=True)}}},
         "audit: 1 error, 2 warnings"),
        ({"checks": {"audit": {}}}, "audit: nothing to warn of"),
        ({"checks": {}}, ""),
    ],
)  # fmt: skip
def test_the_headline_of_each_kind_of_run(changes, said):
    assert pages.headline(result(**changes, **({"metrics": {}, "threshold": None} if changes else {}))) == said
    several = result(spread={"test": {"auroc": seeds_of(0.85, 0.8, 0.9, 0.01)}})
    assert pages.headline(several) == "test AUROC 0.850 (0.800-0.900), mean of 3 seeds"


def test_the_headline_of_a_study_and_no_results_of_runs_that_are_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    assert pages.study_headline("x-smoke") == "no run has finished that has a result to show"
    (tmp_path / "params/x").mkdir(parents=True)
    for run, changes in {"01_a": {"metrics": {}}, "03_b": {"synthetic": True}, "03_b-old": {}}.items():
        if run != "03_b-old":
            (tmp_path / f"params/x/{run}.yaml").write_text("")
        (tmp_path / "runs/x-smoke" / run).mkdir(parents=True)
        write_result(result(run, study="x-smoke", **changes), tmp_path / "runs/x-smoke" / run)
    assert [one.run for one in read_results("x-smoke")] == ["01_a", "03_b"]
    assert pages.study_headline("x-smoke") == "03_b: test AUROC 0.900 (0.800-0.950), synthetic"


HEAD = "[1/2] demo  cell 2/2"
LINES = [
    f"{HEAD}  Start", "    reading: 100%|##| 2/2 [00:09<00:00]", "    red",
    "    epoch 2/9  loss 0.5, at most 30 s left", "    unfinished",
]  # fmt: skip


@pytest.mark.parametrize("verbose", [True, False])
def test_a_terminal_shows_one_line_a_run_and_the_log_the_last_state_of_each(tmp_path, monkeypatch, capsys, verbose):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cells = nbformat.v4.new_markdown_cell("# Start"), nbformat.v4.new_code_cell()
    with closing(Progress("[1/2]", "demo", tmp_path / "run.log", verbose)) as progress:
        progress.seconds = 100.5
        progress.begin(nbformat.v4.new_notebook(cells=list(cells)))
        progress.cell(cells[1], 1)
        for piece in ("read", "ing:  50%|#| 1/2 [00:09<00:09]\rreading: 100%|##| 2/2 [00:09<00:00]", "\n\x1b[31mred\x1b[0m\nINFO:absl:x\n",
                      "epoch 2/9  loss 0.5, at most 30 s left\nunfinished"):  # fmt: skip
            progress.write(piece)
    assert [line.split(" s  ", 1)[1] for line in (tmp_path / "run.log").read_text().splitlines()] == LINES
    states = [state for state in capsys.readouterr().out.split("\r\x1b[K") if state]
    assert [state for state in states if not state.endswith("\n")] == [
        f"{HEAD}, about 1 min 40 s left  Start", *[f"{HEAD}, reading: 100%, 00:00 left"] * 2, f"{HEAD}, epoch 2/9, at most 30 s left",
    ]  # fmt: skip
    assert [state.rstrip("\n") for state in states if state.endswith("\n")] == (LINES if verbose else [])
