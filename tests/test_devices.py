"""Where it runs: what is chosen, what is refused, and the same training on one device and on several."""

import json
import os
import re
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


def child(out: Path, **asked) -> dict:
    """What `devices_child.py` leaves."""
    words = [sys.executable, str(CHILD), str(out), *(f"{name}={json.dumps(values)}" for name, values in asked.items())]
    own = {key: value for key, value in os.environ.items() if key not in ("KERAS_BACKEND", "XLA_FLAGS")}
    done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as found:
        return {name: found[name] if found[name].ndim else json.loads(str(found[name])) for name in found.files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """Logits and facts of every way to run the same training; two processes have their turn in `test_devices_study`."""
    folder = tmp_path_factory.mktemp("devices")
    # Two replicas, because TensorFlow traces each of them. `test_devices_study` has two processes.
    tensorflow = {"require": "cpu", "virtual_cpus": 2, "backend": "tensorflow"}
    jax = {"require": "cpu", "virtual_cpus": 8, "backend": "jax"}
    logits, maps, facts = train({"devices": {"backend": "tensorflow"}}, folder / "here")
    found = {"tf1": logits, "tf1-maps": maps, "tf1-facts": facts} | child(
        folder / "tensorflow.npz", tf2={"devices": tensorflow}
    )
    return found | child(
        folder / "jax.npz", jax1={"devices": jax | {"count": 1}}, jax8={"devices": jax},
        bfloat16={"devices": jax, "training": {"precision": "bfloat16"}},
    )  # fmt: skip


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("name", "words", "tolerance"),
    [  # logits of about 1, after six steps: sums are added in another order, and bfloat16 has three digits
        ("tf1", "^CPU .*tensorflow .*, batches of 16 images$", 0),
        ("tf2", "^2 x virtual CPU .*tensorflow .*, batches of 16 images .8 on each device.$", 1e-4),
        ("jax1", "^CPU .*jax .*, float32, batches of 16 images$", 1e-4),
        ("jax8", "^8 x virtual CPU .*jax .*, batches of 16 images .2 on each device.$", 1e-4),
        ("bfloat16", "^8 x virtual CPU .*, mixed_bfloat16,", 0.03),
    ],
)
def test_the_same_training_on_any_devices(trained, name, words, tolerance):
    """161 images in batches that several devices share: each once, scored as on one device of TensorFlow."""
    one = trained["tf1"]
    assert trained[name].shape == (161,)
    assert np.ptp(one) > 0.1  # not because they are all the same
    np.testing.assert_allclose(trained[name], one, atol=tolerance * max(1, np.abs(one).max()))
    assert re.search(words, device_words(trained[f"{name}-facts"]))
    if name != "bfloat16":
        np.testing.assert_allclose(trained[f"{name}-maps"], trained["tf1-maps"], atol=1e-4)
        assert trained["tf1-maps"].max() == 1


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
        ({"backend": "tensorflow", "require": "tpu"}, r"received tpu, found CPU \(tensorflow .*no sign of a TPU"),
        ({"backend": "jax"}, "imported with the tensorflow backend before, and jax is asked for: restart the kernel"),
        ({"count": 3}, "devices.count: received 3, found 1"),
        ({"virtual_cpus": 2}, "already been initialized|modified after being initialized.*restart the kernel"),
    ],
)
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
    (warning,) = facts["warnings"]
    assert warning.startswith("TPU_ACCELERATOR_TYPE=v5e-8 says that a TPU or GPU is here")
    assert capsys.readouterr().out == f"Running on {device_words(facts)}, seed 1\nWarning: {warning}\n"


@pytest.mark.parametrize(("found", "batch", "used"), [(8, 32, 8), (8, 18, 6), (8, 7, 7), (1, 18, 1)])
def test_as_many_devices_as_can_share_a_batch(found, batch, used):
    assert devices._count(DeviceParams(), found, batch) == used
    with pytest.raises(InputError, match="received 20, which 8 devices cannot share evenly; the nearest are 16 and 24"):
        devices._count(DeviceParams(count=8), 8, 20)


@pytest.mark.parametrize(("kind", "expected"), [("cpu", "float32"), ("gpu", "float16"), ("tpu", "bfloat16")])
def test_precision_follows_the_device(kind, expected):
    one, two = ({"kind": kind, "devices": n, "backend": "tensorflow 2.21.0, keras 3.15.1"} for n in (1, 2))
    asked = [("auto", one), ("bfloat16", one), ("auto", two), ("auto", two | {"backend": "jax 0.10.2"})]
    assert [resolved_precision(*values) for values in asked] == [expected, "bfloat16", "float32", expected]
    # Keras looks for overflow in the first replica alone.
    with pytest.raises(InputError, match="received float16; allowed on several devices of TensorFlow: float32, bf"):
        resolved_precision("float16", two)


def test_processes(monkeypatch):
    def found(*values: str) -> tuple[int, int]:
        keys = ("PROCESS_ID", "NUM_PROCESSES", "JOB_ADDRESSES")
        return hosts.processes({f"KERAS_DISTRIBUTION_{key}": value for key, value in zip(keys, values, strict=True)})

    assert found("", "", "") == found("", "1", "") == (0, 1)
    assert found("1", "2", "10.0.0.1:1") == (1, 2)
    for values in (("2", "2", "a:1"), ("0", "2", ""), ("", "2", "a:1"), ("x", "2", "a:1")):
        with pytest.raises((InputError, ValueError), match="the first must be a number below the second"):
            found(*values)
    monkeypatch.setattr(devices, "processes", lambda: (0, 2))
    with pytest.raises(InputError, match=r"several processes need devices\.backend: jax"):
        start(check({"devices": {"backend": "tensorflow"}}))
