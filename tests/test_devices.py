"""Where it runs: what is chosen, what is refused, and the same training on one device and on several."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from devices_child import train

from pneumolib import hosts
from pneumolib.errors import InputError
from pneumolib.learning import devices
from pneumolib.learning.devices import choose_backend, resolved_precision, start
from pneumolib.params import DeviceParams, check
from pneumolib.provenance import device_words

CHILD = Path(__file__).with_name("devices_child.py")
# Of logits of about 1, after six steps in float32: sums are added in another order.
TOLERANCE = 1e-4


def children(out: Path, total: int = 1, **asked) -> dict:
    """What `devices_child.py` leaves, run in as many processes."""
    words = [sys.executable, str(CHILD), str(out), *(f"{name}={json.dumps(values)}" for name, values in asked.items())]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    own = {key: value for key, value in os.environ.items() if key not in ("KERAS_BACKEND", "XLA_FLAGS")}
    with contextlib.ExitStack() as running:
        started = []
        for number in range(total):
            env = own | (variables(number, total, address) if total > 1 else {})
            child = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            started.append(running.enter_context(child))
            running.callback(child.kill)  # one that fails leaves the other waiting
        said = [child.communicate(timeout=180)[0] for child in started]
        assert [child.returncode for child in started] == [0] * total, said[0][-3000:] + said[-1][-3000:]
    with np.load(out) as found:
        return {name: found[name] if found[name].ndim else json.loads(str(found[name])) for name in found.files}


def variables(*values) -> dict[str, str]:
    """Number of a process, how many there are, address of the first."""
    keys = ("PROCESS_ID", "NUM_PROCESSES", "JOB_ADDRESSES")
    return {f"KERAS_DISTRIBUTION_{key}": str(value) for key, value in zip(keys, values, strict=True)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """Logits and facts of every way to run the same training; two processes have their turn in `test_devices_study`."""
    folder = tmp_path_factory.mktemp("devices")
    # Two replicas, because TensorFlow traces each of them; `test_devices_study` has eight.
    tensorflow = {"require": "cpu", "virtual_cpus": 2, "backend": "tensorflow"}
    jax = {"require": "cpu", "virtual_cpus": 8, "backend": "jax"}
    logits, facts = train({"devices": {"backend": "tensorflow"}}, folder / "here")
    found = {"tf1": logits, "tf1-facts": facts} | children(folder / "tensorflow.npz", tf2={"devices": tensorflow})
    return found | children(
        folder / "jax.npz", jax1={"devices": jax | {"count": 1}}, jax8={"devices": jax},
        bfloat16={"devices": jax, "training": {"precision": "bfloat16"}},
    )  # fmt: skip


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf1", "^CPU .*tensorflow .*, batches of 16 images$"),
        ("tf2", "^2 x virtual CPU .*tensorflow .*, batches of 16 images .8 on each device.$"),
        ("jax1", "^CPU .*jax .*, batches of 16 images$"),
        ("jax8", "^8 x virtual CPU .*jax .*, batches of 16 images .2 on each device.$"),
    ],
)
def test_the_same_training_on_any_devices(trained, name, words):
    """161 images in batches that several devices share: each once, scored as on one device of TensorFlow."""
    one = trained["tf1"]
    assert trained[name].shape == (161,)
    assert np.ptp(one) > 0.1  # not because they are all the same
    np.testing.assert_allclose(trained[name], one, atol=TOLERANCE)
    assert re.search(words, device_words(trained[f"{name}-facts"]))


@pytest.mark.hosts
def test_16_bits_stay_near_32(trained):
    """bfloat16 has three digits."""
    assert trained["bfloat16-facts"]["precision"] == "mixed_bfloat16"
    np.testing.assert_allclose(trained["bfloat16"], trained["jax8"], atol=0.03 * np.abs(trained["jax8"]).max())


@pytest.fixture
def nothing_set(monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(devices, "tpu_hint", lambda: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("asked", "hint", "variable", "expected"),
    [
        ({}, None, None, "tensorflow"),
        ({}, "/dev/accel0", None, "jax"),
        ({"require": "cpu"}, "/dev/accel0", None, "tensorflow"),
        ({"require": "tpu"}, None, None, "jax"),
        ({}, None, "jax", "jax"),
        ({"require": "cpu"}, "/dev/accel0", "jax", "jax"),
        ({"backend": "tensorflow"}, "/dev/accel0", "jax", "tensorflow"),
    ],
)
def test_which_backend(nothing_set, asked, hint, variable, expected):
    nothing_set.setattr(devices, "tpu_hint", lambda: hint)
    if variable:
        nothing_set.setenv("KERAS_BACKEND", variable)
    assert choose_backend(DeviceParams(**asked)) == expected


def test_what_backends_cannot_be_had(nothing_set):
    nothing_set.setattr(devices, "tpu_hint", lambda: "ISTPUVM=1")
    nothing_set.setattr(devices, "find_spec", lambda name: None)
    assert choose_backend(DeviceParams()) == "tensorflow"
    for asked in ({"require": "tpu"}, {"backend": "jax"}):
        with pytest.raises(InputError, match=r"pip install 'jax\[tpu\]'"):
            choose_backend(DeviceParams(**asked))
    nothing_set.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(InputError, match="KERAS_BACKEND: received 'torch', allowed: tensorflow, jax"):
        choose_backend(DeviceParams())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"backend": "tensorflow", "require": "tpu"}, r"devices.require: received tpu, found CPU \(tensorflow .*no sign of a TPU"),
        ({"backend": "jax"}, "imported with the tensorflow backend before, and jax is asked for: restart the kernel"),
        ({"count": 3}, "devices.count: received 3, found 1"),
        ({"virtual_cpus": 2}, "already been initialized|modified after being initialized.*restart the kernel"),
    ],
)  # fmt: skip
def test_what_devices_cannot_be_had(nothing_set, asked, said):
    import tensorflow as tf

    tf.zeros(1)  # at work already
    start(check({}))
    with pytest.raises(InputError, match=said):
        start(check({"devices": asked}))


def test_auto_goes_on_and_says_what_it_left(nothing_set, capsys):
    nothing_set.setattr(devices, "tpu_hint", lambda: "TPU_ACCELERATOR_TYPE=v5e-8")
    nothing_set.setenv("KERAS_BACKEND", "tensorflow")
    facts = start(check({}))
    running, warning = capsys.readouterr().out.splitlines()
    assert running == f"Running on {device_words(facts)}, seed 1"
    assert warning == f"Warning: {facts['warnings'][0]}"
    assert warning.startswith("Warning: TPU_ACCELERATOR_TYPE=v5e-8 says that a TPU or GPU is here")


@pytest.mark.parametrize(("found", "batch", "used"), [(8, 32, 8), (8, 18, 6), (8, 7, 7), (1, 18, 1)])
def test_as_many_devices_as_can_share_a_batch(found, batch, used):
    assert devices._count(DeviceParams(), found, batch) == used
    said = devices._unused(DeviceParams(require="tpu"), found, {"kind": "tpu", "devices": used, "batch": batch})
    assert (said == []) == (used == found)
    with pytest.raises(InputError, match="received 20, which 8 devices cannot share evenly; the nearest are 16 and 24"):
        devices._batches(20, 8)


@pytest.mark.parametrize(("kind", "expected"), [("cpu", "float32"), ("gpu", "float16"), ("tpu", "bfloat16")])
def test_precision_follows_the_device(kind, expected):
    facts = {"kind": kind, "devices": 1, "backend": "tensorflow 2.21.0, keras 3.15.1"}
    assert resolved_precision("auto", facts) == expected
    assert resolved_precision("bfloat16", facts) == "bfloat16"
    # Keras looks for overflow in the first replica alone.
    several = facts | {"devices": 2}
    assert resolved_precision("auto", several) == "float32"
    with pytest.raises(InputError, match="received float16; allowed on several devices of TensorFlow: float32, bf"):
        resolved_precision("float16", several)
    assert resolved_precision("auto", several | {"backend": "jax 0.10.2"}) == expected


def test_processes(monkeypatch):
    for values, expected in ((("", "", ""), (0, 1)), (("", "1", ""), (0, 1)), (("1", "2", "10.0.0.1:1"), (1, 2))):
        assert hosts.processes(variables(*values)) == expected
    for values in (("2", "2", "a:1"), ("0", "2", ""), ("", "2", "a:1"), ("x", "2", "a:1")):
        with pytest.raises((InputError, ValueError), match="the first must be a number below the second"):
            hosts.processes(variables(*values))
    monkeypatch.setattr(devices, "processes", lambda: (0, 2))
    with pytest.raises(InputError, match=r"several processes need devices\.backend: jax"):
        start(check({"devices": {"backend": "tensorflow"}}))
