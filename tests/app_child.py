"""The page of two untrained runs in a process of its own, for `test_app.py`: TensorFlow is imported once for all of it.

    python app_child.py <port>

The runs lie in PNEUMOLIB_ROOT: `tiny/03_baseline_cnn`, and `tiny/03_baseline_cnn-clahe` with equalised images and another
threshold. Once the page is
served the process may not write a byte to any file: an upload that went to disk would fail.
"""

import hashlib
import os
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from pneumolib.__main__ import main
from pneumolib.data.drawing import draw_radiograph
from pneumolib.learning.devices import import_keras
from pneumolib.params import ImageParams, ModelParams
from pneumolib.reporting.results import CalibrationResult, DataResult, Provenance, Result, ThresholdResult, write_result

CALIBRATION = CalibrationResult(
    method="platt", slope=2.0, intercept=0.5, logits=[], probabilities=[], chosen_on="validation"
)


def write_run(root: Path, run: str, network: bytes, image: ImageParams, threshold: float, synthetic: bool) -> None:
    """A run's two files."""
    folder = root / f"runs/tiny/{run}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.keras").write_bytes(network)
    now = datetime.now(UTC)
    one = Result(
        schema_version=2, study="tiny", run=run, notebook="03_baseline_cnn", synthetic=synthetic, calibration=CALIBRATION,
        parameters={"image": image.model_dump()}, data=DataResult(fingerprint="d", images=9, groups=5, left_out=0),
        threshold=ThresholdResult(value=threshold, rule="r", sensitivity=1.0, specificity=1.0, chosen_on="validation"),
        model_sha256=hashlib.sha256(network).hexdigest(),
        provenance=Provenance(commit=None, dirty=None, started=now, finished=now, seconds=1, python="3", platform="p",
                              versions={}, device={}),
    )  # fmt: skip
    write_result(one, folder)


def untrained(image: ImageParams, file: Path) -> bytes:
    """A network that was not trained, as a file."""
    import_keras()
    import keras

    from pneumolib.learning.fitting import save_model
    from pneumolib.learning.networks import build_model

    keras.utils.set_random_seed(1)
    built = build_model(ModelParams(name="coursework_cnn"), image)
    # Untrained, it says the same of all images in the first six digits: now half a logit and more lies between two.
    drawn = [Image.fromarray(draw_radiograph("virus", number)).resize((image.size_px,) * 2) for number in (1, 2)]
    one, other = np.asarray(built(np.stack(drawn)[..., None]))[:, 0]
    kernel, bias = built.layers[-1].get_weights()
    scale = 2 / (one - other)
    built.layers[-1].set_weights([scale * kernel, scale * (bias - (one + other) / 2)])
    save_model(built, file)
    return file.read_bytes()


if __name__ == "__main__":
    root, image = Path(os.environ["PNEUMOLIB_ROOT"]), ImageParams(size_px=32, clahe_tiles=2)
    network = untrained(image, root / "untrained.keras")
    write_run(root, "03_baseline_cnn", network, image, 0.3, synthetic=True)
    equalised = image.model_copy(update={"equalize": "clahe"})
    write_run(root, "03_baseline_cnn-clahe", network, equalised, 0.9, synthetic=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.exit(main(["app", "tiny/03_baseline_cnn", "--port", sys.argv[1]]))
