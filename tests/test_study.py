"""A tiny study from parameter files to pages, of quick notebooks that train nothing. Tests share it and leave it finished.

What the real notebooks leave is in test_notebooks.
"""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from unittest import mock

import psutil
import pytest

from conftest import QUICK, Project
from pneumolib.project import notebook_of
from pneumolib.reporting.results import write_result
from pneumolib.study.plan import plan
from test_reporting import result

RUNS = ["01_quick", "03_baseline_cnn", "06_evaluation-03_baseline_cnn", "07_comparison"]
TRAINING = "training: {epochs: 1, batch_size: 4}\n"
TRAIN = """\
import os, sys
from ipykernel.connect import get_connection_info
(run.folder / "model.keras").write_bytes(b"a network")
(run.folder / "figures").mkdir()
(run.folder / "figures/roc.svg").write_bytes(b"a figure")
print(get_connection_info())
print("\\x1b[1mepoch 1/1\\x1b[0m")
print("reading:  50%|#    | 1/2 [00:00]\\rreading: 100%|##| 2/2 [00:00]", file=sys.stderr)
os.write(2, b"I0000 00:00:1.1   7 gpu_device.cc:1] Created\\n")"""
COMPLETE = """
from pneumolib.reporting.results import write_result
sha = run.trained(split_table).result.model_sha256
write_result(result.model_copy(update={"model_sha256": sha}), run.folder)"""
# What a terminal shows that is none, but for seconds.
SAID = """\
01_quick: up to date
03_baseline_cnn: due, parameter training.batch_size: 5 -> 4
06_evaluation-03_baseline_cnn: due, 03_baseline_cnn is due
07_comparison: due, 06_evaluation-03_baseline_cnn is due
[2/4] 03_baseline_cnn  started: parameter training.batch_size: 5 -> 4
[2/4] 03_baseline_cnn  done  N s
[3/4] 06_evaluation-03_baseline_cnn  started: 03_baseline_cnn is due
[3/4] 06_evaluation-03_baseline_cnn  done  N s
[4/4] 07_comparison  started: 06_evaluation-03_baseline_cnn is due
[4/4] 07_comparison  done  N s

run              result  duration  page
01_quick         done    N s       reports/tiny/01_quick.html
03_baseline_cnn  done    N s       reports/tiny/03_baseline_cnn.html
07_comparison    done    N s       reports/tiny/07_comparison.html

3 run(s) in N s.
Index: reports/tiny/index.html
"""


def quick(name: str) -> str:
    """The quick notebook under another name; that of the baseline takes parameters of a training, and leaves a model file."""
    notebook = copy.deepcopy(QUICK)
    values, start = notebook["cells"][1], notebook["cells"][2]
    start["source"] = start["source"].replace("01_quick", name)
    if name == "03_baseline_cnn":
        values["source"] += '\ntraining = {"epochs": 9}'
        start["source"] = start["source"].replace("image=image", "image=image, training=training")
        notebook["cells"].insert(3, start | {"id": "train", "source": TRAIN})
    if name == "06_evaluation":
        values["source"] += '\nevaluates = "03_baseline_cnn"'
        start["source"] = start["source"].replace("image=image", "image=image, evaluates=evaluates")
        score = '(run.folder / "predictions.csv").write_text("test")'
        notebook["cells"].insert(3, start | {"id": "score", "source": score})
        # Of the training that it tested: a quick one has no threshold, which metrics of test would need.
        notebook["cells"][-1]["source"] += COMPLETE
    return json.dumps(notebook)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Project:
    """The tiny study after a `report`, before which the baseline's batches had another size."""
    project = Project(tmp_path_factory.mktemp("project"))
    for run in RUNS[1:]:
        project.write(f"notebooks/{notebook_of(run)}.ipynb", quick(notebook_of(run)))
    project.write("params/tiny/03_baseline_cnn.yaml", TRAINING)
    project.run("run", "params/tiny/01_quick.yaml")
    with mock.patch.dict(os.environ, PNEUMOLIB_ROOT=str(project.root)):
        pretend_finished(project)
    before = {run: written(project, run) for run in RUNS}
    project.said = project.run_apart("report", "tiny")
    project.executed = [run for run in RUNS if written(project, run) != before[run]]
    return project


def pretend_finished(project: Project) -> None:
    """Results as runs of the baseline with other parameters, and of the comparison built on it, would have left them."""
    project.write("params/tiny/03_baseline_cnn.yaml", TRAINING.replace("4", "5"))
    for run in RUNS[1:]:
        step = next(step for step in plan(project.root / "params/tiny") if step.run == run)
        step.folder.mkdir()
        write_result(result(run, study="tiny", inputs=step.inputs), step.folder)
    project.write("params/tiny/03_baseline_cnn.yaml", TRAINING)


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
    """Make `code` the fifth cell of the quick notebook; '' takes it away again."""

    def change(notebook):
        cells = [c for c in notebook["cells"] if c["id"] != "inserted"]
        inserted = [QUICK["cells"][2] | {"id": "inserted", "source": code}] if code else []
        notebook["cells"] = [*cells[:4], *inserted, *cells[4:]]

    study.edit_notebook("01_quick", change)


def start_and_wait_for(study: Project, word: str) -> tuple[subprocess.Popen, str]:
    """`report` in the background, up to the moment when its output shows `word`, and that line."""
    process = subprocess.Popen(
        study.command("report", "tiny", "-v"), cwd=study.root, env=study.environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stdout:
        if word in line:
            return process, line
    pytest.fail(f"{word!r} was never printed")


def test_a_changed_parameter_reruns_what_it_concerns_and_says_so(study):
    """The baseline's batches had another size before the study's `report`."""
    assert re.sub(r"\b\d+ s\b", "N s", study.said) == SAID
    assert study.executed == RUNS[1:]
    after = study.result("03_baseline_cnn")
    assert after["inputs"]["parameters"]["training.batch_size"] == after["parameters"]["training"]["batch_size"] == 4
    assert after["parameters"]["training"]["epochs"] == 1  # the notebook's own value was replaced


def test_a_run_leaves_its_files_its_page_and_a_log_without_control_codes(study):
    assert not list((study.root / "runs/tiny").glob(".work*"))
    files = ["executed.ipynb", "figures/roc.svg", "model.keras", "result.json", "run.log"]
    assert study.result("03_baseline_cnn")["artefacts"] == files
    assert (study.root / "runs/tiny/03_baseline_cnn/predictions.csv").read_text() == "test"  # from its evaluation
    links = [f'href="{run}.html"' in page(study, other) for run, other in (RUNS[1:3], RUNS[2:0:-1])]
    assert links == [True, True]
    log = (study.root / "runs/tiny/03_baseline_cnn/run.log").read_text(encoding="utf-8")
    assert "[2/4] 03_baseline_cnn  cell 4/7  A quick page\n" in log
    assert "    epoch 1/1\n" in log
    assert log.count("Created\n") == 1  # what a library says is in the log alone
    assert "    reading: 100%" in log
    assert '"transport": "ipc"' in log  # a port is open to every user of the machine
    assert not {"\x1b", "\r"} & set(log)
    for name in [*RUNS, "index"]:
        assert re.search("Synthetic\\..*not a medical device", page(study, name), re.DOTALL)
    assert "epoch 1/1" in page(study, "03_baseline_cnn")
    assert 'class="stderr"' not in page(study, "03_baseline_cnn")  # no progress bar, no line of a library
    assert 'href="tiny/index.html"' in (study.root / "reports/index.html").read_text(encoding="utf-8")


ASK = """\
import sys
from pneumolib.__main__ import main
assert main(["report", "tiny"]) == 0
# Each takes as long to import as the whole answer.
heavy = {"tensorflow", "keras", "papermill", "nbconvert", "matplotlib", "IPython", "scipy.stats", "sklearn"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"""


def test_time_stamps_and_outputs_rerun_nothing_and_asking_needs_no_tensorflow(study, stamps):
    """Asked from the notebooks' folder, as a person may."""

    def run_by_hand(notebook):
        notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "by hand"}]
        notebook["cells"][2]["execution_count"] = 3

    for run in RUNS:
        study.edit_notebook(notebook_of(run), run_by_hand)
    for file in (study.root / "params/tiny").iterdir():
        os.utime(file)
    for image in (study.root / "data/tiny").glob("*/*/*.jpeg"):
        os.utime(image)
    asked = [sys.executable, "-c", ASK]
    done = subprocess.run(asked, cwd=study.root / "notebooks", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Nothing to run" in done.stdout
    (study.root / "reports/tiny/01_quick.html").unlink()
    assert "Nothing to run, 1 page(s) written anew" in study.run("report", "tiny")
    assert "A quick page" in page(study, "01_quick")
    assert stamps() == []


@pytest.mark.slow
def test_an_edited_evaluation_repeats_no_training(study, stamps):
    """And it brings its training's result up to date, which nothing that continues the training is due for."""

    def change(notebook):
        notebook["cells"][3]["source"] = notebook["cells"][3]["source"].replace('("test")', '("again")')

    study.edit_notebook("06_evaluation", change)
    before = study.result("03_baseline_cnn")
    said = study.run("report", "tiny")
    assert "03_baseline_cnn: up to date\n06_evaluation-03_baseline_cnn: due, notebook: cell 4 changed" in said
    assert stamps() == RUNS[2:]
    assert study.result("03_baseline_cnn") == before
    assert (study.root / "runs/tiny/03_baseline_cnn/predictions.csv").read_text() == "again"
    assert "Nothing to run" in study.run("report", "tiny")


def test_a_failure_is_shown_and_a_change_taken_back_costs_no_run(study, stamps):
    """A change for all runs, and the first fails: the others' figures are those of the old parameters."""
    text = (study.root / "params/tiny/study.yaml").read_text(encoding="utf-8")
    changed = text.replace("seed: 1", "seed: 2").replace("n_images: 24", "n_images: 24, val_folder: leave_out")
    study.write("params/tiny/study.yaml", changed)
    set_cell(study, "raise ValueError('drawn <by> hand')")
    assert "tiny/01_quick failed: cell 5: ValueError: drawn <by> hand" in study.run("report", "tiny", code=1)
    assert not (study.root / "runs/tiny/01_quick").exists()
    failed = page(study, "01_quick")
    assert failed.index("This run failed") < failed.index("A quick page")
    assert "ValueError: drawn &lt;by&gt; hand" in failed
    assert 'class="chip failed"' in page(study, "index")
    assert page(study, "index").count("out of date") == 2
    study.write("params/tiny/study.yaml", text)
    set_cell(study, "")
    assert "Nothing to run" in study.run("report", "tiny")
    assert "out of date" not in page(study, "index")
    assert "This run failed" not in page(study, "01_quick")
    assert stamps() == []


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing_that_looks_finished(study, how):
    set_cell(study, "import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(120)")
    process, line = start_and_wait_for(study, "kernel")
    if how == signal.SIGKILL:
        assert "another process is at work on it" in study.run("report", "tiny", code=1)
        set_cell(study, "")  # taken back while the run is at work: its earlier result is not put in its way
        assert "another process is at work on it" in study.run("report", "tiny", code=1)
        assert not (study.root / "runs/tiny/01_quick").exists()
    os.kill(process.pid, how)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
    assert not (study.root / "runs/tiny/01_quick").exists()
    until = time.monotonic() + 10
    while psutil.pid_exists(int(line.split()[-1])):  # the kernel ends with the process that started it
        assert time.monotonic() < until
        time.sleep(0.1)
    assert "This run has not finished" in page(study, "01_quick")
    assert "unfinished" in page(study, "index")
    set_cell(study, "")
    assert "Nothing to run" in study.run("report", "tiny")  # the earlier result is brought back
    assert "This run has not finished" not in page(study, "01_quick")


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failure_and_the_next_run_clears_it(study, stamps):
    set_cell(study, "import os\nos.write(2, b'last words')\nos._exit(9)")
    assert "tiny/01_quick failed: DeadKernelError" in study.run("report", "tiny", code=1)
    assert re.search("This run failed.*last words", page(study, "01_quick"), re.DOTALL)  # past the cell's outputs
    set_cell(study, "")
    assert "01_quick  started: asked for" in study.run("run", "params/tiny/01_quick.yaml")
    assert stamps() == ["01_quick"]
    assert not (study.root / "runs/tiny/.failed/01_quick").exists()
    assert "no such run. Runs of the study: 01_quick" in study.run("run", "params/tiny/99_x.yaml", code=2)


def test_an_unreadable_result_or_a_lost_file_is_a_reason(study, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(study.root))
    runs = study.root / "runs/tiny"
    broken, lost = runs / "01_quick/result.json", runs / "03_baseline_cnn/model.keras"
    text = broken.read_text(encoding="utf-8")
    broken.write_text("{", encoding="utf-8")
    lost.rename(lost.with_suffix(".away"))
    reasons = {step.run: step.reasons for step in plan(study.root / "params/tiny")}
    lost.with_suffix(".away").rename(lost)
    broken.write_text(text, encoding="utf-8")
    assert reasons.pop("01_quick")[0].startswith(f"{broken}: ")
    before = ["model.keras is gone", *(f"{run} is due" for run in RUNS[1:3])]
    assert reasons == {run: [reason] for run, reason in zip(RUNS[1:], before, strict=True)}


def test_a_forced_smoke_run_has_pages_and_results_of_its_own(study, stamps):
    study.write("params/brief/study.yaml", (study.root / "params/tiny/study.yaml").read_text(encoding="utf-8"))
    study.write("params/brief/01_quick.yaml", "")
    assert "01_quick: due, FORCE=1" in study.run("report", "brief", "--smoke", "--force")
    for name in ("01_quick", "index"):
        text = (study.root / f"reports/brief-smoke/{name}.html").read_text(encoding="utf-8")
        assert re.search("Smoke run. Synthetic.</strong> .* Its figures mean nothing.", text)
    assert "Nothing to run" in study.run("report", "brief", "--smoke")
    assert "received 'x' together with SMOKE=1" in study.run("report", "brief", "--smoke", "--data", "x", code=2)
    assert not (study.root / "runs/brief").exists()
    assert stamps() == []  # another study's runs are left alone
