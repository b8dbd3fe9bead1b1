"""Where is this? Kaggle, Colab or a person's own machine, and does it have a TPU? Imports nothing but Python's own.

What the platforms' images set was read in their sources: Kaggle's exports Colab's variables too, so Kaggle is asked for
first; importing TensorFlow sets variables that begin with `TPU_`, so no prefix is matched.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Host = Literal["kaggle", "colab", "local"]


def host(environment: Mapping[str, str] | None = None) -> Host:
    """Whose machine this is, by the variables that the platforms set.

    Args:
        environment: `os.environ` by default.
    """
    variables = os.environ if environment is None else environment
    if variables.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if variables.get("COLAB_RELEASE_TAG") else "local"


def tpu_hint(environment: Mapping[str, str] | None = None, devices: Path = Path("/dev")) -> str | None:
    """What says that this machine has a TPU, such as `TPU_ACCELERATOR_TYPE=v5e-8`; None where nothing does.

    Nothing is started: a hint is enough to choose the backend, which must be done before Keras is imported.
    """
    variables = os.environ if environment is None else environment
    if variables.get("COLAB_TPU_1VM") == "1":  # an empty string on Colab's other machines
        return "COLAB_TPU_1VM=1"
    named = (f"{name}={variables[name]}" for name in ("TPU_ACCELERATOR_TYPE", "ISTPUVM") if variables.get(name))
    chips = (str(chip) for chip in sorted(devices.glob("accel*")))
    return next(named, None) or next(chips, None)
