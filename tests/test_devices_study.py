"""The tiny study, notebooks and pages, on every kind of device that a CPU can stand in for. Minutes: `make test-hosts`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_devices import agree, children

from conftest import TINY_BASELINE, TINY_STUDY, Project

pytestmark = pytest.mark.hosts
WAYS = {
    "one of TensorFlow": "{backend: tensorflow}",
    "eight of TensorFlow": "{backend: tensorflow, virtual_cpus: 8}",
    "one of JAX": "{backend: jax}",
    "eight of JAX": "{backend: jax, virtual_cpus: 8}",
    "two processes": "{backend: jax}",
}
RUN = "params/tiny/03_baseline_cnn.yaml"


def start(project: Project, *words: str, **variables: str) -> subprocess.Popen:
    env = {key: value for key, value in project.environment().items() if key not in ("KERAS_BACKEND", "XLA_FLAGS")}
    return subprocess.Popen(
        project.command(*words), cwd=project.root, env=env | variables, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def in_two_processes(project: Project) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    several = {"NUM_PROCESSES": "2", "JOB_ADDRESSES": address}
    project.run_apart("run", "params/tiny/01_quick.yaml")  # draws the images, which both will read
    return [
        start(project, "run", RUN, **{f"KERAS_DISTRIBUTION_{k}": v for k, v in {"PROCESS_ID": n, **several}.items()})
        for n in "01"
    ]


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, Project]:
    """The study run in each way, all of its notebooks."""
    done = {}
    for way, devices in WAYS.items():
        project = Project(tmp_path_factory.mktemp(way.replace(" ", "-")))
        project.write("params/tiny/study.yaml", f"{TINY_STUDY}devices: {devices}\n")
        project.write(RUN, TINY_BASELINE.replace("batch_size: 4", "batch_size: 8"))
        running = in_two_processes(project) if way == "two processes" else [start(project, "report", "tiny")]
        for process in running:
            with process:
                said = process.communicate(timeout=600)[0]
            assert process.returncode == 0, f"{way}\n{said[-3000:]}"
        done[way] = project
    return done


def logits(project: Project) -> pd.Series:
    return pd.read_csv(project.root / "runs/tiny/03_baseline_cnn/predictions.csv").set_index("image_id").logit


@pytest.mark.parametrize("way", WAYS)
def test_each_image_is_scored_once(studies, way):
    found, expected = logits(studies[way]), logits(studies["one of TensorFlow"])
    assert found.index.tolist() == expected.index.tolist()
    assert found.index.is_unique
    assert np.isfinite(found).all()


@pytest.mark.parametrize("way", ["eight of JAX", "two processes"])
def test_jax_gives_the_same_on_any_devices(studies, way):
    """With dropout, in a network as notebooks train it; JAX draws one mask for a batch, wherever it lies."""
    np.testing.assert_allclose(logits(studies[way]), logits(studies["one of JAX"]), atol=1e-4)


def test_two_processes_train_and_take_up_what_they_kept(tmp_path):
    asked = {"devices": {"backend": "jax"}}
    one = children(tmp_path / "one.npz", logits=asked)
    agree(one["logits"], children(tmp_path / "two.npz", total=2, logits=asked)["logits"])


GO_ON = """
from pathlib import Path
from training_child import trained
whole, found = trained(Path("whole"), "cnn"), trained(Path("cnn-killed"), "cnn")
assert found == whole, [key for key in whole if found[key] != whole[key]]
"""


def test_a_killed_training_on_eight_devices_goes_on_to_the_bit(tmp_path):
    """Under JAX, as on a TPU: optimizer, dropout's generators and the rest go back to all of the devices."""
    eight = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    options = {"cwd": tmp_path, "env": os.environ | eight | {"PYTHONPATH": os.pathsep.join(sys.path)},
               "capture_output": True, "text": True, "timeout": 300, "check": False}  # fmt: skip
    child = Path(__file__).with_name("training_child.py")
    killed = subprocess.run([sys.executable, "-u", child, tmp_path, "cnn:batch:9"], **options)
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert "Running on 8 x virtual CPU" in killed.stdout
    done = subprocess.run([sys.executable, "-c", GO_ON], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Taken up after epoch 1 from" in done.stdout


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("one of JAX", "CPU ("),
        ("eight of JAX", "8 x virtual CPU ("),
        ("eight of TensorFlow", "8 x virtual CPU ("),
        ("two processes", "2 x CPU in 2 processes ("),
    ],
)
def test_the_page_says_where(studies, way, words):
    page = (studies[way].root / "reports/tiny/03_baseline_cnn.html").read_text(encoding="utf-8")
    count = int(words[0]) if words[0].isdigit() else 1
    shared = f" ({8 // count} on each device)" if count > 1 else ""
    assert words in page
    assert f"batches of 8 images{shared}" in page
    assert "INFO:tensorflow" not in page
    assert not os.path.exists(studies[way].root / "runs/tiny/.process-1-03_baseline_cnn")
