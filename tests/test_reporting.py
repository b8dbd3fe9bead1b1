"""Results, tables and plots on their own, without running a notebook."""

import csv
import html
import io
import json
import re
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import jinja2
import jsonschema
import nbformat
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nbconvert.filters import markdown2html

from conftest import REPO
from pneumolib.errors import ResultError
from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import PublishedParams
from pneumolib.reporting import prose, words
from pneumolib.reporting.comparing import leaderboard, published_summary, published_table
from pneumolib.reporting.prose import headline, safe
from pneumolib.reporting.results import (
    DataResult,
    MetricResult,
    Provenance,
    Result,
    SpreadResult,
    ThresholdResult,
    by_metric,
    complete,
    interval,
    read_result,
    read_results,
    result_schema,
    write_result,
)
from pneumolib.study import pages
from pneumolib.study.run import Progress
from pneumolib.text import csv_cell, html_text, inert, printable


def result(run="03_baseline_cnn", auroc=0.9, split="s1", **changes) -> Result:
    now = datetime.now(UTC)
    metrics = by_metric(pd.DataFrame({"metric": METRICS, "value": auroc, "low": auroc - 0.1, "high": auroc + 0.05}))
    values = {
        "schema_version": 4, "study": "x", "run": run, "notebook": "03_baseline_cnn", "synthetic": False, "parameters": {"seed": 1},
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
    wrong = one.model_copy(update={"threshold": replace(one.threshold, value=1.5)})
    with pytest.raises(ResultError, match=r"threshold\.value"):
        write_result(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ResultError, match="has not finished"):
        read_result(tmp_path)
    write_result(one, tmp_path)
    assert read_result(tmp_path) == one
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ResultError, match=r"result\.json"):
        read_result(tmp_path)


def test_an_evaluation_completes_the_network_that_it_tested_and_no_other(tmp_path):
    trained, tested = tmp_path / "03_baseline_cnn", tmp_path / "06_evaluation-03_baseline_cnn"
    for folder, run, sha in ((trained, "03_baseline_cnn", "a" * 64), (tested, tested.name, "a" * 64)):
        folder.mkdir()
        write_result(result(run, model_sha256=sha, checks={"split": [], "confusion": {"tp": 1}}), folder)
    complete(trained)
    alone = read_result(trained)
    assert (list(alone.metrics), alone.checks) == (["validation"], {"split": []})
    with pytest.raises(ResultError, match=r"holds no predictions\.csv"):
        complete(trained, tested)
    assert read_result(trained) == alone
    (tested / "predictions.csv").write_text("test", encoding="utf-8")
    complete(trained, tested)
    found = read_result(trained)
    assert (found.run, list(found.metrics)) == ("03_baseline_cnn", ["validation", "test"])
    assert (found.provenance, found.checks["confusion"]) == (alone.provenance, {"tp": 1})
    assert (trained / "predictions.csv").read_text(encoding="utf-8") == "test"
    write_result(alone.model_copy(update={"model_sha256": "b" * 64}), trained)
    with pytest.raises(ResultError, match="was trained again while it was evaluated"):
        complete(trained, tested)


def test_the_published_schema_is_the_one_that_results_are_checked_by(tmp_path):
    """Valid JSON for one is valid for the other, and what one refuses, so does the other."""

    published, made = json.loads((REPO / "docs/result.schema.json").read_text(encoding="utf-8")), result_schema()
    for name, part in made["$defs"].items():  # pydantic before 2.13 leaves out what dataclasses say of themselves
        if "description" not in part:
            published["$defs"][name].pop("description", None)
    assert published == made, "docs/result.schema.json is old: pneumolib schema > docs/result.schema.json"
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


def seeds_of(mean: float, low: float | None, high: float | None, sd: float) -> SpreadResult:
    return SpreadResult(seeds=3, mean=mean, low=low, high=high, sd=sd, lowest=mean - sd, highest=mean + sd)


def test_what_a_schema_cannot_say_is_checked_too():
    with pytest.raises(ValueError, match="needed are both in this order, or neither"):
        MetricResult(value=0.5, low=0.6, high=0.4)
    with pytest.raises(ValueError, match="metrics of test need the threshold"):
        result(threshold=None)
    with pytest.raises(ValueError, match="Input should be 'auroc', "):
        result(spread={"test": {"luck": seeds_of(0.5, None, None, 0)}})


def test_leaderboard_is_ordered_by_validation():
    assert leaderboard([]).empty
    low, high = result("a", 0.7), result("b", 0.9)
    best_on_test = low.model_copy(update={"metrics": {"validation": low.metrics["test"], "test": high.metrics["test"]}})
    board = leaderboard([best_on_test, high])
    assert board.run.tolist() == ["b", "a"]
    assert words.table("leaderboard", board).set_index("Run").loc["b", "AUROC"] == "0.900 (0.800 to 0.950)"


def test_a_run_of_several_seeds_stands_with_their_mean():
    spread = dict.fromkeys(METRICS, seeds_of(0.8, 0.7, 0.9, 0.01))
    rules = {"resamples": 50, "confidence": 0.95}
    several, one = ({"evaluation": rules | {"seeds": seeds}} for seeds in ([2, 3], []))
    lucky = result("lucky", 0.95, spread={"validation": spread, "test": spread}, parameters=several)
    board = leaderboard([lucky, result("plain", 0.85, parameters=one)])
    assert board.run.tolist() == ["plain", "lucky"]
    assert board.auroc.tolist() == [0.85, 0.8]
    assert board.seeds.tolist() == [1, 3]
    shown = words.table("leaderboard", board).set_index("Run").loc["lucky"]
    assert (shown.AUROC, shown.Seeds) == ("0.800 (0.700 to 0.900)", "mean of 3, SD 0.010")


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
        ["b", "measured", "official test", "0.900 (0.800 to 0.950)", "0.900 (0.800 to 0.950)"],
        ["a", "published", "official test", "", "0.650"],
        ["a", "measured", "official test", "0.700 (0.600 to 0.750)", "0.700 (0.600 to 0.750)"],
        ["c", "measured", "official test", "0.800 (0.700 to 0.850)", "0.800 (0.700 to 0.850)"],
    ]
    assert table.columns.tolist() == ["System or run", "Figures", "Test set", "AUROC", "Accuracy"]
    block = result("d").model_copy(update={"facts": result().facts | {"test_images": 312}})
    assert published_table(leaderboard([block]), PUBLISHED)["Test set"].iloc[-1] == "other data, 312 images"

    said = published_summary(leaderboard([result("a", 0.7), result("b", 0.9)]), PUBLISHED).data
    assert "theirs" not in said
    for part in ("**b**: AUROC 0.900, published 0.700 (+0.200, the published one lies below our interval); accuracy 0.900",
                 "**a**: accuracy 0.700, published 0.650 (+0.050, the published one lies within our interval)."):  # fmt: skip
        assert part in said
    board = leaderboard([result("c")])
    assert "No finished run of this study repeats a published one." in published_summary(board, PUBLISHED).data
    assert len(published_table(leaderboard([]), PUBLISHED)) == 3
    assert published_table(board, PublishedParams()).empty
    assert published_summary(board, PublishedParams()).data == ""


SHOWN = interval(0.9, 0.8, 0.95)
LEADING = {"reference": "a", "validation_auroc": 0.9, "auroc": 0.8, "auroc_low": 0.7, "auroc_high": 0.9, "random_backbones": ["b"],
           "differences": [{"name": "b", "difference": -0.1, "difference_low": -0.2, "difference_high": 0.1}]}  # fmt: skip
VERDICTS = {"a_cv": "warning", "a_test": "warning", "b": "error", "c": "ok", "d": "warning", "e": "warning"}


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        (None, f"AUROC: {SHOWN} on 624 test images. At threshold 0.400, sensitivity is {SHOWN} and specificity {SHOWN}."),
        ({"equalisation": {"val": {"hist": {"difference": -0.149, "difference_low": -0.2, "difference_high": -0.1}, "clahe": {}}}},
         "HE changes the AUROC on validation images by -0.149 (-0.200 to -0.100), a loss. CLAHE changes the AUROC on validation images by "
         "not computable, without a verdict."),
        ({"audit": {n: {"verdict": v, "sentence": f"Of {n}."} for n, v in VERDICTS.items()}},
         "The audit found 1 error and 4 warnings in 9 images."),
        ({"audit": {}}, "The audit found no errors and no warnings in 9 images."),
        ({"comparison": {}}, "No training run of this study has finished yet."),
        ({"comparison": LEADING}, "a leads 2 runs on validation, with an AUROC of 0.900. Its AUROC on test images is "
         f"{interval(0.8, 0.7, 0.9)}. b, second on validation, differs on test by -0.100 (-0.200 to +0.100): no significant difference. Random backbone weights: "
         "b. This order says nothing about transfer learning."),
    ],
)  # fmt: skip
def test_the_headline_of_each_kind_of_run(checks, said):
    trained = {"checks": {"split": [{"split": "test", "images": 624, "groups": 9}]}}
    one = result(**(trained if checks is None else {"checks": checks, "metrics": {}, "threshold": None}))
    lines = headline(one)
    assert lines[0] == said
    assert "Data set: not available; 9 images of 5 patient groups." in " ".join(lines)
    if said.startswith("The audit found 1"):  # the gravest, each once; cross-validation before test
        assert lines[1:5] == ["Error: Of b.", "Warning: Of a_cv.", "Warning: Of d.", "The sections below have 2 more."]
    assert headline(result(checks={}, metrics={}, threshold=None)) == []


def test_the_headline_names_synthetic_images_seeds_and_random_backbones(tmp_path, monkeypatch):
    """A run that continues one on a random backbone has one itself."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    spread = {"test": {"auroc": seeds_of(0.85, 0.8, 0.9, 0.01)}}
    assert headline(result(synthetic=True, spread=spread))[0].startswith(
        f"Mean AUROC over 3 seeds: {interval(0.85, 0.8, 0.9)} on the synthetic test images. This run's own seed: AUROC {SHOWN}. At"
    )
    (tmp_path / "runs/x/04_a").mkdir(parents=True)
    further = result("05_a", checks={"continues": "04_a"})
    for weights, random in (("none", True), ("imagenet", False)):
        one = result("04_a", parameters={"model": {"backbone": "VGG16", "weights": weights}})
        write_result(one, tmp_path / "runs/x/04_a")
        for run in (one, further):
            assert (headline(run)[0].startswith("AUROC with random backbone weights: 0.9")) == random
    (tmp_path / "runs/x/04_a/result.json").unlink()
    assert headline(further)


def test_the_headline_of_a_study_and_no_results_of_runs_that_are_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    assert pages.study_headline("x-smoke") == "no run has finished that has a result to show"
    (tmp_path / "params/x").mkdir(parents=True)
    for run, changes in {"01_a": {"metrics": {}}, "03_b": {}, "03_b-old": {}}.items():
        if run != "03_b-old":
            (tmp_path / f"params/x/{run}.yaml").write_text("")
        (tmp_path / "runs/x-smoke" / run).mkdir(parents=True)
        write_result(result(run, study="x-smoke", **changes), tmp_path / "runs/x-smoke" / run)
    assert [one.run for one in read_results("x-smoke")] == ["01_a", "03_b"]
    assert pages.study_headline("x-smoke").startswith(f"03_b: AUROC: {SHOWN} on")


MARKED = ["1. x", "- x", "# x", "a <b>", "http://a.b/c", "$a$", "\\begin{x}a\\end{x}", "~~x~~", "_x_ a_b", "![a](b)", "&lt;b&gt;",
          "a | b", "```x```", "[x]: http://a.b", "===", "`a` **b**"]  # fmt: skip


@pytest.mark.parametrize("value", MARKED)
def test_text_from_data_is_shown_as_text(value):
    """Whatever Markdown or HTML would make of it, alone, in an item of a list and in a cell of a table."""
    assert markdown2html(safe(value)) == f"<p>{html.escape(value, quote=False)}</p>\n"
    assert f"<li>{html.escape(value, quote=False)}</li>" in markdown2html(f"- {safe(value)}")
    table = words.table("subgroups", [{"part": value, "images": 3}])
    assert (len(table), table.Subgroup[0], table.Images[0]) == (1, value, "3")


# Anything a name or a table can hold, bytes that are no UTF-8 among it.
TEXTS = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("<>&'\"|*_`$=+-@ \n\t\r\x1b\u202e\u200b\udcfc\\")
)


@given(TEXTS)
@example("a\nb\x1b[2J\u202ex\udcfc")
def test_a_terminal_sees_every_character_and_what_was_visible_stays(text):
    """No character moves the cursor or the text; the escapes, read as Python reads them, are the characters again."""
    shown = printable(text)
    assert shown.isprintable()
    if "\\" not in text:
        bytes_again = re.sub(r"\\x([89a-f][0-9a-f])", lambda m: chr(0xDC00 + int(m[1], 16)), shown)
        low = re.sub(r"[\x80-\xff]", lambda m: chr(0xDC00 + ord(m[0])) if not m[0].isprintable() else m[0], text)
        again = re.sub(
            r"\\(?:x..|u....|U........|[ntr])", lambda m: m[0].encode().decode("unicode_escape"), bytes_again
        )
        assert again == low


@given(TEXTS)
@example(" =1+1")
@example("\uff1dcmd()")
@example("-2+3")
@example("'=1")
def test_a_cell_for_people_is_no_formula_and_one_apostrophe_more_at_most(text):
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text), "next"])
    [[cell, after]] = csv.reader(io.StringIO(file.getvalue()))
    assert after == "next"
    assert cell.removeprefix("'") == printable(text) or not cell.startswith("'")
    assert not re.match(r"\s*[=@\uff1d\uff20]|\s*[-+\uff0b\uff0d](?![\d.])", cell)
    assert inert("-0.25") == "-0.25"


class Read(HTMLParser):
    """What a browser makes of a page: texts, and elements with their attributes."""

    def __init__(self):
        super().__init__()
        self.text, self.elements = "", []

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))


def as_read(page: str) -> Read:
    reader = Read()
    reader.feed(page)
    reader.close()
    return reader


@given(TEXTS)
@example('"><img src=x onerror=a>')
def test_text_in_html_and_markdown_makes_no_element(text):
    page = as_read(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    assert page.elements == [("p", [("title", printable(text, "\n"))])]
    assert page.text == printable(text, "\n")
    line = " ".join(str(safe(text)).split())
    shown = as_read(markdown2html(f"a {line} z"))
    assert [tag for tag, _ in shown.elements] == ["p"]
    assert shown.text.strip().split() == ["a", *printable(re.sub(r"\s+", " ", text)).split(), "z"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"schema_version": 3, "x": [1]}', "schema_version is 3; this pneumolib reads version 4."),
        (b'{"study": "x"}', "schema_version is missing; this pneumolib reads version 4."),
        (b'{"schema_version": 4}', "study: received {'schema_version': 4}: Field required (6 more faults)."),
        (b"no JSON", "Invalid JSON: "),
        (b'{"study": "\xfc"}', "Invalid JSON: "),
        (b"[" * 100_000, "Invalid JSON: "),
        (b"", "Invalid JSON: "),
    ],
)
def test_a_result_that_cannot_be_used_is_one_line_with_what_to_do(tmp_path, content, said):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ResultError) as fault:
        read_result(tmp_path)
    words = str(fault.value)
    assert words.startswith(f"{tmp_path / 'result.json'}: {said}")
    assert words.endswith(". Run the run again (make report), or read it with the pneumolib that wrote it")
    assert len(words.splitlines()) == 1


def test_a_result_that_is_no_file_or_too_large_is_not_read(tmp_path):
    with (tmp_path / "result.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ResultError, match="68,157,440 bytes; allowed are 67,108,864"):
        read_result(tmp_path)
    (tmp_path / "a/result.json").mkdir(parents=True)
    with pytest.raises(ResultError, match="cannot be read: Is a directory"):
        read_result(tmp_path / "a")


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
        progress.begin(nbformat.v4.new_notebook(cells=list(cells)))
        progress.cell(cells[1], 1)
        for piece in ("read", "ing:  50%|#| 1/2 [00:09<00:09]\rreading: 100%|##| 2/2 [00:09<00:00]", "\n\x1b[31mred\x1b[0m\nINFO:absl:x\n",
                      "epoch 2/9  loss 0.5, at most 30 s left\nunfinished"):  # fmt: skip
            progress.write(piece)
    assert [line.split(" s  ", 1)[1] for line in (tmp_path / "run.log").read_text().splitlines()] == LINES
    states = [state for state in capsys.readouterr().out.split("\r\x1b[K") if state]
    assert [state for state in states if not state.endswith("\n")] == [
        f"{HEAD}  Start", *[f"{HEAD}, reading: 100%|##| 2/2 [00:09<00:00]"] * 2, f"{HEAD}, epoch 2/9  loss 0.5, at most 30 s left",
    ]  # fmt: skip
    assert [state.rstrip("\n") for state in states if state.endswith("\n")] == (LINES if verbose else [])


def test_a_kept_template_of_other_escaping_is_compiled_anew(tmp_path, monkeypatch):
    """Another version of this library may have left compiled templates, whose values nothing escaped."""

    def shown(escaping: str, finalize) -> str:
        monkeypatch.setattr(prose, "_ESCAPING", escaping)
        kept = prose.CompiledTemplates(tmp_path)
        return (
            jinja2.Environment(loader=loader, bytecode_cache=kept, finalize=finalize)
            .get_template("t")
            .render(x="a\x1b")
        )

    loader = jinja2.DictLoader({"t": "{{ x }}"})
    assert shown("before", None) == "a\x1b"
    assert shown("now", printable) == "a\\x1b"
