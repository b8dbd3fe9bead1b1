"""A training in a notebook, its results and its page, under JAX on eight devices and in two processes. Minutes, so `make
test-hosts` runs it. The whole baseline notebook runs on eight devices, as on a TPU; elsewhere a notebook trains the same.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import QUICK, TINY_BASELINE, TINY_STUDY, Project

pytestmark = pytest.mark.hosts
STUDIES = {  # with what the page says of the devices, and the images on each
    "jax-eight": ("{backend: jax, virtual_cpus: 8}", "03_baseline_cnn", "8 x virtual CPU (", 1),
    "jax-processes": ("{backend: jax}", "01_quick", "2 x CPU in 2 processes (", 4),
}
BASELINE = TINY_BASELINE.replace("batch_size: 4", "batch_size: 8")
SECTIONS = ("devices", "data", "split", "image", "augment", "model", "training", "evaluation", "robustness")
PARAMETERS = "\n".join(['study = "tiny"', *(f"{name} = {{}}" for name in SECTIONS)])
TRAIN = """\
import pandas as pd
import pneumolib as pn

run = pn.start("01_quick", study=study, devices=devices, data=data, split=split, image=image, augment=augment, model=model,
               training=training, evaluation=evaluation, robustness=robustness)
params = run.params
device = pn.learning.start(params)
import keras

manifest = pn.data.read_manifest(params.data)
table = pn.data.split_manifest(manifest.table, params.split)
train, val, test = (pn.data.read_images(manifest, table, part, params.image) for part in ("train", "val", "test"))

def trained():
    keras.utils.set_random_seed(params.seed)
    bias = pn.learning.initial_logit(train.table.label, pn.learning.class_weights(train.table.label, params.training.class_weights))
    network = pn.learning.build_model(params.model, params.image, bias)
    return network, pn.learning.fit(network, train, val, params, run.training_folder).drop(columns="seconds")

network, history = trained()
assert trained()[1].equals(history)  # takes up what is kept of the first
run.save(pd.concat([pn.learning.predict(network, part) for part in (val, test)]), "predictions.csv")
run.finish(manifest, table, device=device)"""


def start(project: Project, study: str, run: str) -> list[subprocess.Popen]:
    """The run in one process, or in two."""
    env = {key: value for key, value in project.environment().items() if key not in ("KERAS_BACKEND", "XLA_FLAGS")}
    variables = [{}]
    if study == "jax-processes":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = "{}:{}".format(*free.getsockname())
        several = {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2", "KERAS_DISTRIBUTION_JOB_ADDRESSES": address}
        variables = [several | {"KERAS_DISTRIBUTION_PROCESS_ID": number} for number in "01"]
    options = {"cwd": project.root, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = project.command("run", f"params/{study}/{run}.yaml")
    return [subprocess.Popen(command, env=env | own, **options) for own in variables]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """One project, its images and pixels, and a study for each kind of device."""
    project = Project(tmp_path_factory.mktemp("project"))
    title, values, *_, last = QUICK["cells"]
    cells = [title, values | {"source": PARAMETERS}, last | {"source": TRAIN}]
    project.write("notebooks/01_quick.ipynb", json.dumps(QUICK | {"cells": cells}))
    for study, (devices, run, *_) in STUDIES.items():
        project.write(f"params/{study}/study.yaml", f"{TINY_STUDY}devices: {devices}\n")
        project.write(f"params/{study}/{run}.yaml", BASELINE)
        for process in start(project, study, run):
            with process:
                said = process.communicate(timeout=600)[0]
            assert process.returncode == 0, f"{study}\n{said[-3000:]}"
    return project


def logits(project: Project, study: str) -> pd.Series:
    file = project.root / f"runs/{study}/{STUDIES[study][1]}/predictions.csv"
    return pd.read_csv(file).set_index("image_id").logit


@pytest.mark.parametrize("study", STUDIES)
def test_each_image_is_scored_once_and_jax_gives_the_same_on_any_devices(project, study):
    """With dropout, in a network as notebooks train it; JAX draws one mask for a batch. The page says where it trained."""
    found, expected = logits(project, study), logits(project, "jax-eight")
    assert found.index.tolist() == expected.index.tolist()
    assert found.index.is_unique
    assert np.isfinite(found).all()
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-4)
    _, run, words, share = STUDIES[study]
    page = (project.root / f"reports/{study}/{run}.html").read_text(encoding="utf-8")
    assert words in page
    assert f"batches of 8 images ({share} on each device)" in page
    assert not list(project.root.glob(f"runs/{study}/.process-*"))


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
