"""Small trainings on several devices in a process of their own, for `test_devices.py`: a runtime is made ready once.

    python devices_child.py <out.npz> <name>=<parameters as JSON> ...

Each training starts from the same weights and sees the same images. `out.npz` gets its logits of 161 test images, maps
and what `start` returned.
"""

import json
import sys
from pathlib import Path

import numpy as np

from pneumolib.learning import devices
from pneumolib.params import check

TRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 1.0e-2}


def train(values: dict, folder: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    """Logits after a short training, Grad-CAM maps of three images before it, and what `start` returned."""
    params = check({"devices": values["devices"], "training": TRAINING | values.get("training", {}),
                    "augment": {"flip": True}, "image": {"size_px": 32, "channels": 1}})  # fmt: skip
    facts = devices.start(params)
    # Not before `start`, which chooses the backend: these import Keras.
    from test_training import image_set

    from pneumolib.learning.explain import grad_cam
    from pneumolib.learning.fitting import fit
    from pneumolib.learning.predicting import predict

    test, network = image_set(161, 2, "test"), plain_network()
    maps = grad_cam(network, test.pixels[:3])
    history = fit(network, image_set(48, 0), image_set(25, 1, "val"), params, folder)
    again = fit(plain_network(), image_set(48, 0), image_set(25, 1, "val"), params, folder)  # takes up what is finished
    assert again.drop(columns="seconds").equals(history.drop(columns="seconds"))
    found = predict(network, test)
    assert found.image_id.is_unique
    return found.logit.to_numpy(), maps, facts


def plain_network():
    """Normalisation but no dropout, whose masks each replica draws for itself; a bias before the normalisation would only
    carry rounding errors, which Adam blows up to whole steps. The weights are the same for every backend.
    """
    import keras

    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((32, 32, 1), dtype="uint8"), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, strides=4, use_bias=False),
            layers.BatchNormalization(momentum=0.5), layers.ReLU(), layers.GlobalAveragePooling2D(),
            layers.Dense(1, dtype="float32", name="logit"),
        ]
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for weight in network.trainable_weights:
        weight.assign(rng.normal(0, 1, weight.shape))
    return keras.Model(network.inputs[0], network.outputs[0])


def main() -> None:
    out, *asked = sys.argv[1:]
    arrays = {}
    for item in asked:
        name, _, values = item.partition("=")
        logits, maps, facts = train(json.loads(values), Path(out).parent / name)
        arrays |= {name: logits, f"{name}-maps": maps, f"{name}-facts": json.dumps(facts)}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main()
