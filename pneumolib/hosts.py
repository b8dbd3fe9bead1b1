"""Where is this? Kaggle, Colab or a person's own machine, and does it have a TPU? Imports nothing but Python's own.

What the platforms' images set was read in their sources: Kaggle's exports Colab's variables too, so Kaggle is asked for
first; importing TensorFlow sets variables that begin with `TPU_`, so no prefix is matched.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Host = Literal["kaggle", "colab", "local"]


class HostError(ValueError):
    """What a machine says of itself makes no sense."""


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


def processes(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """This process's number, from 0, and how many there are that train one network together: 0 and 1 without others.

    Keras's own variables are read, which a launcher sets for each host: `KERAS_DISTRIBUTION_PROCESS_ID`,
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and, for the address of the first, `KERAS_DISTRIBUTION_JOB_ADDRESSES`.

    Raises:
        HostError: numbers that make no sense, or no address.
    """
    variables = os.environ if environment is None else environment
    names = ("KERAS_DISTRIBUTION_PROCESS_ID", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_JOB_ADDRESSES")
    number, total, address = (variables.get(name, "") for name in names)
    if not any((number, total, address)) or total == "1":
        return 0, 1
    if not (number.isdigit() and total.isdigit() and int(number) < int(total) and address):
        received = ", ".join(f"{name}={variables.get(name, '')!r}" for name in names)
        raise HostError(
            f"{received}: the first must be a number below the second, and the third the address of process 0, such as "
            f"10.0.0.1:1234; for one process leave all three unset"
        )
    return int(number), int(total)
