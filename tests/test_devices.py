"""Where it runs: what is chosen, what is refused, and the same training on one device and on several."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from devices_child import train

from pneumolib import hosts
from pneumolib.errors import InputError
from pneumolib.learning import devices, runtimes
from pneumolib.learning.devices import DeviceError, choose_backend, device_words, start
from pneumolib.params import DeviceParams, ParamsError, check

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
            several = {"PROCESS_ID": str(number), "NUM_PROCESSES": str(total), "JOB_ADDRESSES": address}
            env = own | {f"KERAS_DISTRIBUTION_{key}": value for key, value in several.items() if total > 1}
            child = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            started.append(running.enter_context(child))
            running.callback(child.kill)  # one that fails leaves the other waiting
        said = [child.communicate(timeout=180)[0] for child in started]
        assert [child.returncode for child in started] == [0] * total, said[0][-3000:] + said[-1][-3000:]
    with np.load(out) as found:
        return {name: found[name] if found[name].ndim else str(found[name]) for name in found.files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """Logits and words of every way to run the same training; two processes have their turn in `test_devices_study`."""
    folder = tmp_path_factory.mktemp("devices")
    # Two replicas, because TensorFlow traces each of them; `test_devices_study` has eight.
    tensorflow = {"require": "cpu", "virtual_cpus": 2, "backend": "tensorflow"}
    jax = {"require": "cpu", "virtual_cpus": 8, "backend": "jax"}
    logits, facts = train({"devices": {"backend": "tensorflow"}}, folder / "here")
    found = {"tf1": logits, "tf1-facts": json.dumps(facts), "tf1-words": device_words(facts)}
    found |= children(folder / "tensorflow.npz", tf2={"devices": tensorflow})
    return found | children(
        folder / "jax.npz", jax1={"devices": jax | {"count": 1}}, jax8={"devices": jax},
        bfloat16={"devices": jax, "training": {"precision": "bfloat16"}},
    )  # fmt: skip


@pytest.mark.hosts
@pytest.mark.parametrize("name", ["tf2", "jax1", "jax8"])
def test_the_same_training_on_any_devices(trained, name):
    """161 images in batches that several devices share: each once, scored as on one device of TensorFlow."""
    agree(trained["tf1"], trained[name])


def agree(one: np.ndarray, other: np.ndarray) -> None:
    """All 161 logits are the same, up to the tolerance, and not because they are all the same."""
    assert other.shape == (161,)
    assert np.ptp(one) > 0.1
    np.testing.assert_allclose(other, one, atol=TOLERANCE)


@pytest.mark.hosts
def test_16_bits_stay_near_32(trained):
    """bfloat16 has three digits."""
    assert json.loads(trained["bfloat16-facts"])["precision"] == "mixed_bfloat16"
    np.testing.assert_allclose(trained["bfloat16"], trained["jax8"], atol=0.03 * np.abs(trained["jax8"]).max())


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf1", "CPU ("),
        ("tf2", "2 x virtual CPU ("),
        ("jax8", "8 x virtual CPU ("),
    ],
)
def test_what_a_page_says(trained, name, words):
    said = trained[f"{name}-words"]
    assert said.startswith(words)
    count = json.loads(trained[f"{name}-facts"])["devices"]
    assert ("batches of 16 images" + (f" ({16 // count} on each device)" if count > 1 else "")) in said
    assert ("tensorflow" if name.startswith("tf") else "jax") in said


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
    assert choose_backend(DeviceParams(**asked)) == (expected, [])


def test_a_tpu_without_jax_is_said_or_refused(nothing_set):
    nothing_set.setattr(devices, "tpu_hint", lambda: "ISTPUVM=1")
    nothing_set.setattr(devices, "find_spec", lambda name: None)
    backend, warnings = choose_backend(DeviceParams())
    assert backend == "tensorflow"
    assert "JAX is not installed" in warnings[0]
    assert "ISTPUVM=1" in warnings[0]
    for asked in ({"require": "tpu"}, {"backend": "jax"}):
        with pytest.raises(DeviceError, match=r"pip install 'jax\[tpu\]'"):
            choose_backend(DeviceParams(**asked))


def test_another_backend_is_refused_by_name(nothing_set):
    nothing_set.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(DeviceError, match="KERAS_BACKEND: received 'torch', allowed: tensorflow, jax"):
        choose_backend(DeviceParams())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"backend": "tensorflow", "require": "tpu"}, r"devices.require: received tpu, found CPU \(tensorflow .*no sign of a TPU"),
        ({"backend": "tensorflow", "require": "gpu"}, "devices.require: received gpu, found CPU"),
        ({"backend": "jax"}, "imported with the tensorflow backend before, and jax is asked for: restart the kernel"),
        ({"count": 3}, "devices.count: received 3, found 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_stops(nothing_set, asked, said):
    import keras

    assert keras.backend.backend() == "tensorflow"
    with pytest.raises(DeviceError, match=said):
        start(check({"devices": asked}))


def test_auto_goes_on_and_says_what_it_left(nothing_set, capsys):
    nothing_set.setattr(devices, "tpu_hint", lambda: "TPU_ACCELERATOR_TYPE=v5e-8")
    nothing_set.setenv("KERAS_BACKEND", "tensorflow")
    facts = start(check({}))
    assert "TPU_ACCELERATOR_TYPE=v5e-8" in facts["warnings"][0]
    running, warning = capsys.readouterr().out.splitlines()
    assert running.startswith("Running on CPU (")
    assert running.endswith("batches of 32 images, seed 1")
    assert warning.startswith("Warning: a TPU seems to be here")


@pytest.mark.parametrize(("found", "batch", "used"), [(8, 32, 8), (8, 18, 6), (8, 4, 4), (8, 7, 7), (1, 18, 1)])
def test_as_many_devices_as_can_share_a_batch(found, batch, used):
    assert runtimes._count(DeviceParams(), found, batch) == used
    facts = {"kind": "tpu", "devices": used, "batch": batch}
    said = devices._unused(DeviceParams(require="tpu"), found, facts)
    assert said == ([] if used == found else [f"8 devices are here, and {used} are used: a batch of {batch} images cannot be "
                                              f"shared by more"])  # fmt: skip


def test_a_batch_that_devices_cannot_share():
    with pytest.raises(
        DeviceError, match="received 20, which 8 devices cannot share evenly; the nearest are 16 and 24"
    ):
        devices._batches(20, 8)
    with pytest.raises(DeviceError, match=r"the nearest are 8\. Or"):
        devices._batches(4, 8)


def test_virtual_devices_are_cpus():
    with pytest.raises(ParamsError, match="virtual_cpus 8 are CPUs, and require: tpu asks for another kind"):
        check({"devices": {"virtual_cpus": 8, "require": "tpu"}})


@pytest.mark.parametrize(("kind", "expected"), [("cpu", "float32"), ("gpu", "float16"), ("tpu", "bfloat16")])
def test_precision_follows_the_device(kind, expected):
    facts = {"kind": kind, "devices": 1, "backend": "tensorflow 2.21.0, keras 3.15.1"}
    assert devices.resolved_precision("auto", facts) == expected
    assert devices.resolved_precision("bfloat16", facts) == "bfloat16"
    # Keras looks for overflow in the first replica alone.
    several = facts | {"devices": 2}
    assert devices.resolved_precision("auto", several) == "float32"
    with pytest.raises(
        DeviceError, match="received float16, which several devices under TensorFlow do not train safely"
    ):
        devices.resolved_precision("float16", several)
    assert devices.resolved_precision("auto", several | {"backend": "jax 0.10.2"}) == expected


def test_words_of_runs_that_trained_nothing():
    assert device_words({"device": "CPU", "cores": 4}) == "CPU (4 cores)"
    assert device_words({}) == "not recorded"


@pytest.mark.parametrize(
    ("number", "total", "address", "expected"),
    [("", "", "", (0, 1)), ("", "1", "", (0, 1)), ("1", "2", "10.0.0.1:1234", (1, 2))],
)
def test_processes(number, total, address, expected):
    keys = ("PROCESS_ID", "NUM_PROCESSES", "JOB_ADDRESSES")
    variables = {f"KERAS_DISTRIBUTION_{key}": value for key, value in zip(keys, (number, total, address), strict=True)}
    assert hosts.processes(variables) == expected


@pytest.mark.parametrize("values", [("2", "2", "a:1"), ("0", "2", ""), ("", "2", "a:1"), ("x", "2", "a:1")])
def test_processes_that_make_no_sense(values):
    keys = ("PROCESS_ID", "NUM_PROCESSES", "JOB_ADDRESSES")
    variables = {f"KERAS_DISTRIBUTION_{key}": value for key, value in zip(keys, values, strict=True)}
    with pytest.raises(InputError, match="the first must be a number below the second"):
        hosts.processes(variables)


def test_tensorflow_refuses_several_processes(monkeypatch):
    monkeypatch.setattr(runtimes, "processes", lambda: (0, 2))
    with pytest.raises(DeviceError, match=r"several processes need devices\.backend: jax"):
        start(check({"devices": {"backend": "tensorflow"}}))
