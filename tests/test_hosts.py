"""Where is this? What the platforms set, and what only looks like it."""

import pytest

from pneumolib.hosts import host, tpu_hint

COLAB = {"COLAB_RELEASE_TAG": "release-colab_20261101", "COLAB_TPU_1VM": ""}
KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "local"),
        (COLAB, "colab"),
        (KAGGLE, "kaggle"),
        (KAGGLE | COLAB, "kaggle"),  # Kaggle's image exports Colab's variables
        ({"KAGGLE_KERNEL_RUN_TYPE": ""} | COLAB, "colab"),
    ],
)
def test_whose_machine_this_is(variables, expected):
    assert host(variables) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (COLAB, None),
        (COLAB | {"COLAB_TPU_1VM": "1"}, "COLAB_TPU_1VM=1"),
        (KAGGLE | {"TPU_ACCELERATOR_TYPE": "v5e-8"}, "TPU_ACCELERATOR_TYPE=v5e-8"),
        ({"ISTPUVM": "1"}, "ISTPUVM=1"),
        # What importing TensorFlow leaves behind on any machine.
        ({"TPU_ML_PLATFORM": "Tensorflow", "TPU_ML_PLATFORM_VERSION": "2.21.0"}, None),
    ],
)
def test_what_speaks_for_a_tpu(variables, expected, tmp_path):
    assert tpu_hint(variables, tmp_path) == expected


def test_a_chip_in_dev(tmp_path):
    (tmp_path / "accel1").touch()
    (tmp_path / "accel0").touch()
    assert tpu_hint({}, tmp_path) == str(tmp_path / "accel0")
