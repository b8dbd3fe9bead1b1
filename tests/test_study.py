"""A tiny study end to end: 24 images, 32 px, one epoch. Tests share one finished study."""

import os
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from conftest import TINY_BASELINE, Project
from pneumolib.evaluation.calibration import Calibration
from pneumolib.evaluation.metrics import METRICS, PREDICTION_COLUMNS
from pneumolib.learning.callbacks import HISTORY_COLUMNS
from pneumolib.reporting.results import write_result
from pneumolib.reporting.study import plan
from test_reporting import result

RUNS = ["01_quick", "03_baseline_cnn", "06_comparison"]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Project:
    """The tiny study after a `report`, before which the baseline's batches had another size; tests leave it finished."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.good = ""  # what `set_cell` puts in for the notebook that the finished study was made with
    project.run("run", "params/tiny/01_quick.yaml")
    with mock.patch.dict(os.environ, PNEUMOLIB_ROOT=str(project.root)):
        pretend_finished(project, TINY_BASELINE.replace("batch_size: 4", "batch_size: 5"))
    before = {run: written(project, run) for run in RUNS}
    project.said = project.run_apart("report", "tiny")
    project.executed = [run for run in RUNS if written(project, run) != before[run]]
    return project


def pretend_finished(project: Project, baseline: str) -> None:
    """Results as runs of the baseline with other parameters, and of the comparison built on it, would have left them."""
    project.write("params/tiny/03_baseline_cnn.yaml", baseline)
    for run in RUNS[1:]:
        step = next(step for step in plan(project.root / "params/tiny") if step.run == run)
        step.folder.mkdir()
        write_result(result(run, study="tiny", inputs=step.inputs), step.folder)
    project.write("params/tiny/03_baseline_cnn.yaml", TINY_BASELINE)


def written(study: Project, run: str) -> int:
    """When the run's result was, in nanoseconds."""
    return (study.root / f"runs/tiny/{run}/result.json").stat().st_mtime_ns


@pytest.fixture
def stamps(study):
    """Says which runs were executed since: their results are new files."""
    times = {run: written(study, run) for run in RUNS}
    return lambda: [run for run in RUNS if written(study, run) != times[run]]


def page(study: Project, name: str) -> str:
    return (study.root / f"reports/tiny/{name}.html").read_text(encoding="utf-8")


def set_cell(study: Project, code: str) -> None:
    """Make `code` the fifth cell of the exploration; '' takes it away again."""

    def change(notebook):
        notebook["cells"] = [c for c in notebook["cells"] if c["id"] != "inserted"]
        if code:
            cell = {
                "cell_type": "code",
                "id": "inserted",
                "metadata": {},
                "source": code,
                "outputs": [],
                "execution_count": None,
            }
            notebook["cells"].insert(4, cell)

    study.edit_notebook("01_quick", change)


def start_and_wait_for(study: Project, word: str) -> tuple[subprocess.Popen, str]:
    """`report` in the background, up to the moment when its output shows `word`, and that line."""
    process = subprocess.Popen(
        study.command("report", "tiny"), cwd=study.root, env=study.environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stdout:
        if word in line:
            return process, line
    pytest.fail(f"{word!r} was never printed")


def assert_gone(pid: int) -> None:
    """The kernel ends with the process that started it."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"kernel {pid} is still there")


def test_every_artefact_is_there(study):
    for run in RUNS:
        folder = study.root / "runs/tiny" / run
        assert {"executed.ipynb", "result.json", "run.log"} <= {f.name for f in folder.iterdir()}
        assert page(study, run).count("<html") == 1
    folder = study.root / "runs/tiny/03_baseline_cnn"
    predictions = pd.read_csv(folder / "predictions.csv")
    assert list(predictions.columns) == [*PREDICTION_COLUMNS, "calibrated"]
    np.testing.assert_allclose(
        predictions.calibrated, Calibration(**study.result("03_baseline_cnn")["calibration"]).apply(predictions.logit)
    )
    split = pd.read_csv(folder / "split.csv")
    expected = split[split.split != "train"].image_id
    assert sorted(predictions.image_id) == sorted(expected)
    history = pd.read_csv(folder / "history.csv")
    assert list(history.columns) == HISTORY_COLUMNS
    assert len(history) == 1
    assert (folder / "model.keras").stat().st_size > 10_000
    assert "Model card" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()[0]
    assert len(pd.read_csv(study.root / "runs/tiny/06_comparison/leaderboard.csv")) == 1
    assert not [f for f in (study.root / "runs/tiny").iterdir() if f.name.startswith(".work")]


def test_result_json_says_what_where_and_from_what(study):
    result = study.result("03_baseline_cnn")
    assert result["synthetic"] is True
    assert set(result["metrics"]["test"]) == set(METRICS)
    assert result["threshold"]["chosen_on"] == result["calibration"]["chosen_on"] == "validation"
    assert result["checks"].keys() >= {"confusion", "calibration", "predictive_values", "subgroups", "robustness"}
    assert 0 <= result["checks"]["permutation"]["p"] <= 1
    explanation = result["checks"]["explanation"]
    assert explanation["randomisation"]["images"] == explanation["occlusion"]["images"]
    assert result["parameters"]["training"]["epochs"] == 1
    provenance = result["provenance"]
    assert provenance["device"]["cores"] >= 1
    assert {"keras", "numpy", "papermill"} <= provenance["versions"].keys()
    assert provenance["commit"] is None  # the temporary folder is no checkout
    assert len(result["data"]["fingerprint"]) == 16
    assert result["data"]["images"] == 24
    assert len(result["facts"]["weights_sha256"]) == 64
    assert {"parameters", "notebook", "library", "data", "packages", "upstream"} == result["inputs"].keys()


def test_terminal_and_log_show_progress_without_control_codes(study):
    assert "[2/3] 03_baseline_cnn  cell" in study.said
    assert "epoch 1/1" in study.said
    assert "validation AUROC" in study.said
    assert "Index: reports/tiny/index.html\nResult: 03_baseline_cnn: test AUROC" in study.said
    log = (study.root / "runs/tiny/03_baseline_cnn/run.log").read_text(encoding="utf-8")
    assert "epoch 1/1" in log
    assert "\x1b" not in log
    assert "\r" not in log


def test_pages_are_offline_and_say_synthetic(study):
    for name in [*RUNS, "index"]:
        text = page(study, name)
        assert "Synthetic." in text
        assert "not a medical device" in text
        for attribute in ('src="http', 'href="http', "src='http", "@import", "url(http"):
            assert attribute not in text
        assert len(text) < 3_000_000
    assert '<img alt="' in page(study, "03_baseline_cnn")
    assert "Figure without a description" not in page(study, "03_baseline_cnn")
    assert 'href="tiny/index.html"' in (study.root / "reports/index.html").read_text(encoding="utf-8")


def test_nothing_changed_reruns_nothing_and_needs_no_tensorflow(study, stamps):
    program = (
        "import sys; from pneumolib.__main__ import main; code = main(['report', 'tiny']);"
        "heavy = [m for m in ('tensorflow', 'keras', 'papermill', 'matplotlib') if m in sys.modules];"
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=study.root,
        env=study.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing to run" in done.stdout
    assert stamps() == []


def test_touched_files_and_other_outputs_rerun_nothing(study, stamps):
    def run_by_hand(notebook):
        notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "by hand"}]
        notebook["cells"][2]["execution_count"] = 3

    for run in RUNS:
        study.edit_notebook(run, run_by_hand)
        os.utime(study.root / f"params/tiny/{run}.yaml")
    for image in (study.root / "data/tiny").glob("*/*/*.jpeg"):
        os.utime(image)
    assert "Nothing to run" in study.run("report", "tiny")
    assert stamps() == []


def test_a_page_that_is_gone_is_written_again_without_a_run(study, stamps):
    (study.root / "reports/tiny/01_quick.html").unlink()
    assert "1 page(s) written anew" in study.run("report", "tiny")
    assert "A quick page" in page(study, "01_quick")
    assert stamps() == []


def test_failure_then_repair_then_only_what_is_needed(study, stamps):
    set_cell(study, "raise ValueError('drawn <by> hand')")
    said = study.run("report", "tiny", code=1)
    assert "tiny/01_quick failed: cell 5: ValueError: drawn <by> hand" in said
    assert not (study.root / "runs/tiny/01_quick").exists()
    text = page(study, "01_quick")
    assert text.index("This run failed") < text.index("A quick page")
    assert "ValueError: drawn &lt;by&gt; hand" in text
    assert "failed" in page(study, "index")
    study.good = "answer = 42"
    set_cell(study, study.good)
    said = study.run("report", "tiny")
    assert "01_quick: due, has not finished yet" in said
    assert stamps() == ["01_quick"]
    assert "This run failed" not in page(study, "01_quick")
    assert not (study.root / "runs/tiny/.failed/01_quick").exists()


def test_a_change_taken_back_costs_no_run(study, stamps):
    set_cell(study, "raise ValueError('a slip')")
    study.run("report", "tiny", code=1)
    set_cell(study, study.good)
    assert "Nothing to run" in study.run("report", "tiny")
    assert stamps() == []
    assert "This run failed" not in page(study, "01_quick")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing_that_looks_finished(study, how):
    set_cell(study, "import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(120)")
    process, line = start_and_wait_for(study, "kernel")
    if how == signal.SIGKILL:
        assert "another process is at work on it" in study.run("report", "tiny", code=1)
        set_cell(study, study.good)  # taken back while the run is at work: its earlier result is not put in its way
        assert "another process is at work on it" in study.run("report", "tiny", code=1)
        assert not (study.root / "runs/tiny/01_quick").exists()
    os.kill(process.pid, how)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
    assert not (study.root / "runs/tiny/01_quick").exists()
    assert_gone(int(line.split()[-1]))
    text = page(study, "01_quick")
    assert "This run has not finished" in text
    assert "Synthetic." in text
    assert "unfinished" in page(study, "index")
    set_cell(study, study.good)
    assert "Nothing to run" in study.run("report", "tiny")  # the earlier result is brought back
    assert "This run has not finished" not in page(study, "01_quick")


def test_a_kernel_that_dies_is_a_failure(study):
    set_cell(study, "import os\nos._exit(9)")
    said = study.run("report", "tiny", code=1)
    assert "tiny/01_quick failed: DeadKernelError" in said
    assert "This run failed" in page(study, "01_quick")
    set_cell(study, study.good)
    study.run("report", "tiny")


def test_what_is_due_but_not_reached_is_marked(study, stamps):
    """A change for all runs, and the first fails: the others' figures are those of the old parameters."""
    text = (study.root / "params/tiny/study.yaml").read_text(encoding="utf-8")
    study.write(
        "params/tiny/study.yaml",
        text.replace("seed: 1", "seed: 2").replace("n_images: 24", "n_images: 24, val_folder: leave_out"),
    )
    set_cell(study, "1 / 0")
    study.run("report", "tiny", code=1)
    assert page(study, "index").count("out of date") == 2
    study.write("params/tiny/study.yaml", text)
    set_cell(study, study.good)
    assert "Nothing to run" in study.run("report", "tiny")
    assert "out of date" not in page(study, "index")
    assert stamps() == []


def test_an_unreadable_result_or_a_lost_file_is_a_reason(study, monkeypatch):
    file = study.root / "runs/tiny/01_quick/result.json"
    file.write_text("{", encoding="utf-8")
    assert "01_quick: due, " in study.run("report", "tiny")
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(study.root))
    lost = study.root / "runs/tiny/03_baseline_cnn/model.keras"
    lost.rename(lost.with_suffix(".away"))
    reasons = {step.run: step.reasons for step in plan(study.root / "params/tiny")}
    lost.with_suffix(".away").rename(lost)
    assert reasons == {"01_quick": [], "03_baseline_cnn": ["model.keras is gone"],
                       "06_comparison": ["03_baseline_cnn runs again"]}  # fmt: skip


def test_the_command_works_from_the_notebooks_folder(study):
    done = subprocess.run(
        study.command("report", "tiny"), cwd=study.root / "notebooks", capture_output=True, text=True, check=False
    )
    assert "Nothing to run" in done.stdout, done.stderr


def test_faulty_parameters_stop_before_anything_is_touched(study, stamps):
    study.write("params/tiny/06_comparison.yaml", "model: {name: separable_cnn}\n")
    study.write("params/tiny/03_baseline_cnn.yaml", "training: {epoch: 1}\n")
    said = study.run("report", "tiny", code=2)
    assert "06_comparison.yaml: model: notebook 06_comparison does not use it" in said
    assert "03_baseline_cnn.yaml: training.epoch: unknown key" in said
    study.write("params/tiny/06_comparison.yaml", "")
    study.write("params/tiny/03_baseline_cnn.yaml", TINY_BASELINE)
    assert "no such study. Studies found: tiny" in study.run("report", "none", code=2)
    assert stamps() == []


def test_a_changed_parameter_reruns_what_it_concerns_and_says_so(study):
    """The baseline's batches had another size before the study's `report`."""
    assert "03_baseline_cnn: due, parameter training.batch_size: 5 -> 4" in study.said
    assert "06_comparison: due, 03_baseline_cnn runs again" in study.said
    assert "01_quick: up to date" in study.said
    assert study.executed == ["03_baseline_cnn", "06_comparison"]
    after = study.result("03_baseline_cnn")
    assert after["inputs"]["parameters"]["training.batch_size"] == 4
    assert after["provenance"]["device"]["batch"] == 4  # what the notebook trained with
    assert after["inputs"]["upstream"] == {}
    assert study.result("06_comparison")["inputs"]["upstream"].keys() == {"03_baseline_cnn"}


def test_one_run_alone(study, stamps):
    study.write("params/tiny/01_quick.yaml", "# another comment\n")
    said = study.run("run", "params/tiny/01_quick.yaml")
    assert "01_quick  because: asked for" in said
    assert stamps() == ["01_quick"]
    assert "no such file. Runs of the study: 01_quick" in study.run("run", "params/tiny/99_x.yaml", code=2)


def test_force_runs_everything_asked_for(study, stamps):
    study.write("params/small/study.yaml", (study.root / "params/tiny/study.yaml").read_text(encoding="utf-8"))
    study.write("params/small/01_quick.yaml", "")
    assert "1 run(s)" in study.run("report", "small")
    assert "01_quick: due, FORCE=1" in study.run("report", "small", "--force")
    assert stamps() == []  # another study's runs are left alone


def test_a_smoke_run_has_pages_and_results_of_its_own(study, stamps):
    study.write("params/brief/study.yaml", (study.root / "params/tiny/study.yaml").read_text(encoding="utf-8"))
    study.write("params/brief/01_quick.yaml", "")
    said = study.run("report", "brief", "--smoke")
    assert "Index: reports/brief-smoke/index.html\nResult: no run has finished that has a result to show" in said
    result = (study.root / "runs/brief-smoke/01_quick/result.json").read_text(encoding="utf-8")
    assert '"study": "brief-smoke"' in result
    for name in ("01_quick", "index"):
        text = (study.root / f"reports/brief-smoke/{name}.html").read_text(encoding="utf-8")
        assert "Smoke run. Synthetic.</strong> A few drawn images, one epoch and random weights" in text
        assert "Its figures mean nothing." in text
    assert "Smoke run" not in page(study, "index")
    assert ">smoke run</td>" in (study.root / "reports/index.html").read_text(encoding="utf-8")
    assert "Nothing to run" in study.run("report", "brief", "--smoke")
    assert not (study.root / "runs/brief").exists()
    assert not (study.root / "reports/brief").exists()
    assert stamps() == []
