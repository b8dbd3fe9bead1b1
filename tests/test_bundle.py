"""A bundle start to end on a machine laid out as Kaggle's, without a network: the same pages and numbers as at home, though its
first session was killed and its second ended in time. Minutes, so `make test-hosts` runs it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from conftest import TINY_BASELINE, Project
from pneumolib.data.layout import MARKER
from pneumolib.data.manifest import read_manifest
from pneumolib.params import check

pytestmark = pytest.mark.hosts
# Executes a notebook as Kaggle does, from top to bottom in the working folder, in a process of its own. The kernel is talked to
# through files, so that it also works where the network is switched off, loopback included.
CHILD = """\
import sys, tempfile
import papermill
from traitlets.config import Config
with tempfile.TemporaryDirectory(prefix="bundle-") as sockets:
    ipc = Config(KernelManager={"transport": "ipc", "ip": sockets + "/kernel"})
    papermill.execute_notebook(sys.argv[1], "__notebook__.ipynb", kernel_name="python3", progress_bar=False, config=ipc,
                               stdout_file=sys.stdout, stderr_file=sys.stdout)"""
EPOCHS = 30  # long enough to be killed in
STUDY = """\
data: {source: kaggle_folder, root: data/chest_xray}
split: {validation_fraction: 0.3, ratio_tolerance_points: 25.0}
image: {size_px: 32, channels: 1}
"""
RUNS = ["01_quick", "03_baseline_cnn"]
FIRST_CHECKPOINT = "runs/tiny/trainings/03_baseline_cnn/checkpoint.npz"


class Machine:
    """Folders as on Kaggle: `input` with the archive and its second copy, `working` to write to."""

    def __init__(self, root: Path, images: Path):
        self.root, self.working = root, root / "kaggle/working"
        self.project = self.working / "pneumolib"
        self.working.mkdir(parents=True)
        archive = root / "kaggle/input/chest-xray-pneumonia/chest_xray"
        shutil.copytree(images, archive)
        shutil.copytree(images, archive / "chest_xray")

    def attach(self, other: "Machine", **options) -> None:
        """What another machine's session left, as an input."""
        shutil.copytree(other.working, self.root / "kaggle/input/pneumolib-tiny", **options)

    def start(self, notebook: Path) -> subprocess.Popen:
        """The notebook's session, in a network name space without any network where the system allows one."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PNEUMOLIB_ROOT")}
        environment |= {"PNEUMOLIB_HOST_ROOT": str(self.root), "KAGGLE_KERNEL_RUN_TYPE": "Batch", "PIP_NO_INDEX": "1"}
        environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        words = [sys.executable, "-u", "-c", CHILD, str(notebook)]
        apart = ["unshare", "--map-root-user", "--net"]
        allowed = shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True).returncode == 0
        return subprocess.Popen(
            [*(apart if allowed else []), *words], cwd=self.working, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, notebook: Path) -> str:
        with self.start(notebook) as session:
            said = session.communicate(timeout=400)[0]
        assert session.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Project:
    """The study as it runs at home, on the images that the machines get too, and its bundle."""
    project = Project(tmp_path_factory.mktemp("home"))
    project.write(
        "params/tiny/03_baseline_cnn.yaml",
        TINY_BASELINE.replace("epochs: 1", f"epochs: {EPOCHS}, patience_epochs: null"),
    )
    (project.root / "params/tiny/07_comparison.yaml").unlink()
    project.images = project.root / "images"
    read_manifest(check({"data": {"source": "synthetic", "root": str(project.images), "n_images": 24}}).data)
    (project.images / MARKER).unlink()  # so that they are taken for radiographs
    project.write("params/tiny/study.yaml", STUDY)
    project.write(".gitignore", "/build/\n/images/\n/runs/\n/reports/\n/data/\n/.cache/\n.*.lock\n")
    project.commit()
    project.run("kaggle", "tiny")
    project.bundle = project.root / "build/kaggle/tiny/pneumolib-tiny.ipynb"
    project.run_apart("report", "tiny", "--data", str(project.images))
    return project


def assert_same_results(machine: Machine, home: Project) -> None:
    roots = machine.project, home.root
    one, other = ({page.relative_to(root) for page in root.glob("reports/**/*.html")} for root in roots)
    assert one == other
    for run in RUNS:
        there, here = (json.loads((root / f"runs/tiny/{run}/result.json").read_text("utf-8")) for root in roots)
        for one in (there, here):
            one["parameters"]["data"]["root"] = ""
            one["inputs"]["upstream"] = {}  # hashes of results name the time that they were made at
        # The machine's folder holds a second copy of itself, as on Kaggle, which is named and counts as no file.
        assert (there["data"]["left_out"], here["data"]["left_out"]) == (0, 0)
        for part in ("metrics", "threshold", "calibration", "data", "parameters", "checks", "inputs"):
            assert there.get(part) == here.get(part), (run, part)
        assert there["provenance"]["commit"] == here["provenance"]["commit"]
        assert there["provenance"]["dirty"] is False
    for file in ("predictions.csv", "split.csv", "history.csv"):
        left, right = (
            pd.read_csv(root / f"runs/tiny/03_baseline_cnn/{file}", dtype=str).drop(columns="seconds", errors="ignore")
            for root in roots
        )
        pd.testing.assert_frame_equal(left, right)


def test_sessions_that_are_killed_and_ended_in_time_leave_the_pages_and_numbers_of_a_run_at_home(home, tmp_path):
    killed, ended, last = (Machine(tmp_path / name, home.images) for name in ("killed", "ended", "last"))
    with killed.start(home.bundle) as session:
        until = time.monotonic() + 300
        while not (killed.project / FIRST_CHECKPOINT).is_file() and session.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        doomed = [psutil.Process(session.pid), *psutil.Process(session.pid).children(recursive=True)]
        for process in doomed:
            process.kill()
        psutil.wait_procs(doomed, timeout=30)
    assert (killed.project / FIRST_CHECKPOINT).is_file()
    assert not (killed.project / "runs/tiny/03_baseline_cnn").exists()
    assert (killed.project / "runs/tiny/01_quick/result.json").is_file()

    ended.attach(killed)
    brief = tmp_path / "brief.ipynb"  # with another limit in its parameters, as a person changes it on Kaggle
    brief.write_text(home.bundle.read_text(encoding="utf-8").replace("hours = 8.5", "hours = 0.001"), encoding="utf-8")
    said = ended.run(brief)
    assert f"radiographs: {ended.root}/kaggle/input/chest-xray-pneumonia/chest_xray; 2 earlier run(s) taken up." in said
    assert "the next session goes on from here" in said
    assert json.loads((ended.project / "outcome.json").read_text(encoding="utf-8"))["code"] == 75

    # As if nothing hidden were kept: whether Kaggle keeps it is not documented.
    last.attach(ended, ignore=shutil.ignore_patterns(".*"))
    said = last.run(home.bundle)
    assert "2 earlier run(s) taken up" in said
    assert "01_quick: up to date" in said
    log = (last.project / "runs/tiny/03_baseline_cnn/run.log").read_text(encoding="utf-8")
    taken = next(line for line in log.splitlines() if "Taken up after epoch" in line)
    assert "nothing left to train" not in taken, "killed too late: raise EPOCHS"
    assert_same_results(last, home)
    outcome = json.loads((last.project / "outcome.json").read_text(encoding="utf-8"))
    assert (outcome["state"], outcome["code"]) == ("finished", 0)
    assert "AUROC: " in outcome["headline"]
    # Neither images, nor links to them, nor code are among what Kaggle keeps.
    left = {path.name for path in last.project.iterdir()}
    assert left == {"notebooks", "params", "runs", "reports", "outcome.json"}
    assert not [path for path in last.working.rglob("*") if path.is_symlink()]
