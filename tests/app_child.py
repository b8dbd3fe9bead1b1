"""The page of two untrained runs in a process of its own, for `test_app.py`: TensorFlow is imported once for all of it.

    python app_child.py <port>

The runs lie in PNEUMOLIB_ROOT: `tiny/03_baseline_cnn`, and `tiny/03_baseline_cnn-clahe` with equalised images and another
threshold. Once the page is served the process may not write a byte to any file: an upload that went to disk would fail.
"""

import os
import resource
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pneumolib.__main__ import main
from pneumolib.data.drawing import draw_radiograph
from pneumolib.learning.devices import import_keras
from pneumolib.params import ImageParams, ModelParams
from pneumolib.provenance import file_sha256
from pneumolib.reporting.results import CalibrationResult, ThresholdResult, write_result
from test_reporting import result

CALIBRATION = CalibrationResult(
    method="none", slope=1, intercept=0, logits=(), probabilities=(), chosen_on="validation"
)


def write_runs(root: Path, image: ImageParams) -> None:
    """Both with one network that was not trained."""
    import_keras()
    import keras

    from pneumolib.learning.fitting import save_model
    from pneumolib.learning.networks import build_model

    keras.utils.set_random_seed(1)
    network = build_model(ModelParams(name="coursework_cnn"), image)
    # Untrained, it says the same of all images in the first six digits: now half a logit and more lies between two.
    drawn = [Image.fromarray(draw_radiograph("virus", number)).resize((image.size_px,) * 2) for number in (1, 2)]
    one, other = np.asarray(network(np.stack(drawn)[..., None]))[:, 0]
    kernel, bias = network.layers[-1].get_weights()
    scale = 2 / (one - other)
    network.layers[-1].set_weights([scale * kernel, scale * (bias - (one + other) / 2)])
    for run, equalize, threshold in (("03_baseline_cnn", "none", 0.3), ("03_baseline_cnn-clahe", "clahe", 0.9)):
        folder = root / f"runs/tiny/{run}"
        folder.mkdir(parents=True)
        save_model(network, folder / "model.keras")
        values = {"image": image.model_dump() | {"equalize": equalize}}
        frozen = ThresholdResult(value=threshold, rule="r", sensitivity=1.0, specificity=1.0, chosen_on="validation")
        facts = result(
            run, study="tiny", synthetic=equalize == "none", parameters=values, threshold=frozen, calibration=CALIBRATION,
            model_sha256=file_sha256(folder / "model.keras"),
        )  # fmt: skip
        write_result(facts, folder)


if __name__ == "__main__":
    write_runs(Path(os.environ["PNEUMOLIB_ROOT"]), ImageParams(size_px=32, clahe_tiles=2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.exit(main(["app", "tiny/03_baseline_cnn", "--port", sys.argv[1]]))
