"""Files to probabilities, one after the other: what a terminal, a page and a test all call."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from pneumolib.data.facts import colour_of
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.data.pixels import decode_for, network_pixels
from pneumolib.errors import ImageFileError
from pneumolib.serve.trained import TrainedModel

BATCH = 64
_AHEAD = 2  # batches that are read while one is predicted
Item = tuple[str, Path | bytes]
_Seen = tuple[np.ndarray, tuple[int, int, float]]  # the network's pixels, and the file's width, height and colour


@dataclass(frozen=True)
class Scored:
    """What a model says of one file; the numbers are None where `error` says why there are none.

    Attributes:
        name: as it was given.
        probability: of pneumonia, the network's own, to which the frozen threshold belongs.
        calibrated: of pneumonia, by the calibration that was frozen on validation.
        predicted_class: `pneumonia` or `normal`.
        warnings: what sets the image apart from the training images, in words; see `data.facts`.
        pixels: what the network saw, uint8 (size_px, size_px, channels).
        error: why the file could not be read.
    """

    name: str
    probability: float | None = None
    calibrated: float | None = None
    predicted_class: str | None = None
    warnings: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    error: str | None = None


def score_images(model: TrainedModel, items: Iterable[Item], batch: int = BATCH) -> Iterator[Scored]:
    """Score files in their order, a batch at a time, so that memory does not grow with their number.

    A file that cannot be read gets its reason, and the others go on.

    Args:
        items: a name for each file, and its path or its bytes.
        batch: images at once.
    """
    items, waiting = iter(items), deque[list[tuple[str, Future]]]()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        try:
            while portion := list(itertools.islice(items, batch)):
                waiting.append([(name, pool.submit(_read, source, model)) for name, source in portion])
                if len(waiting) > _AHEAD:
                    yield from _score_portion(model, waiting.popleft())
            for readings in waiting:
                yield from _score_portion(model, readings)
        finally:  # whoever takes no more of them waits for no more than is being read
            pool.shutdown(wait=False, cancel_futures=True)


def _read(source: Path | bytes, model: TrainedModel) -> _Seen | str:
    """As in training (`load_image` is the same two calls), or why the file cannot be read."""
    try:
        raw = source if isinstance(source, bytes) else source.read_bytes()
        decoded = decode_for(raw, model.image)
        pixels = network_pixels(decoded.image, model.image)
        return pixels, (decoded.width_px, decoded.height_px, colour_of(raw, decoded.mode))
    except ImageFileError as fault:
        return str(fault)
    except IsADirectoryError:
        return "a folder that holds no image"
    except OSError as fault:
        return f"cannot be read: {fault.strerror or fault}"
    except MemoryError:
        return "needs more memory than there is"


def _score_portion(model: TrainedModel, readings: list[tuple[str, Future]]) -> Iterator[Scored]:
    outcomes = [(name, reading.result()) for name, reading in readings]
    seen = [outcome for _, outcome in outcomes if not isinstance(outcome, str)]
    found = iter(_score_pixels(model, seen) if seen else ())
    for name, outcome in outcomes:
        yield Scored(name, error=outcome) if isinstance(outcome, str) else Scored(name, *next(found))


def _score_pixels(model: TrainedModel, seen: list[_Seen]) -> Iterator[tuple]:
    """What `Scored` holds of each image, but its name."""
    # Imported here: whoever only asks for the words above need not wait for Keras.
    from pneumolib.learning.predicting import logits_of

    pixels = np.stack([pixels for pixels, _ in seen])
    logits = logits_of(model.network, pixels)
    probabilities, calibrated = expit(logits), model.calibration.apply(logits)
    classes = [LABEL_NAMES[int(probability >= model.threshold)] for probability in probabilities]
    warnings = [()] * len(seen)
    if model.ood:
        files = pd.DataFrame([facts for _, facts in seen], columns=["width_px", "height_px", "colour"])
        warnings = model.ood.warnings(model.ood.facts(pixels, files))
    return zip(probabilities.tolist(), calibrated.tolist(), classes, warnings, pixels, strict=True)
