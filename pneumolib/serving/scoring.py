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

from pneumolib.data.decoding import ImageFileError
from pneumolib.data.facts import colour_of
from pneumolib.data.pixels import decode_for, network_pixels
from pneumolib.data.sources import LABEL_NAMES
from pneumolib.serving.trained import TrainedModel

BATCH = 64
_AHEAD = 2  # batches that are read while one is predicted
Item = tuple[str, Path | bytes]


@dataclass(frozen=True)
class Scored:
    """What a model says of one file; the numbers are None where `error` says why there are none.

    Attributes:
        name: as it was given.
        probability: of pneumonia, the network's own, to which the frozen threshold belongs.
        calibrated: of pneumonia, by the calibration that was frozen on validation.
        call: `pneumonia` or `normal`.
        warnings: what sets the image apart from the training images, in words; see `data.familiarity`.
        error: why the file could not be read.
        pixels: what the network saw, uint8 (size_px, size_px, channels).
    """

    name: str
    probability: float | None = None
    calibrated: float | None = None
    call: str | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class _Seen:
    pixels: np.ndarray
    width_px: int
    height_px: int
    colour: float


def score(model: TrainedModel, items: Iterable[Item], batch: int = BATCH) -> Iterator[Scored]:
    """Score files in their order, a batch at a time, so that memory does not grow with their number.

    A file that cannot be read gets its reason, and the others go on.

    Args:
        items: a name for each file, and its path or its bytes.
        batch: images at once.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting: deque[list[tuple[str, Future]]] = deque()
        try:
            for portion in _portions(items, batch):
                waiting.append([(name, pool.submit(_read, source, model)) for name, source in portion])
                if len(waiting) > _AHEAD:
                    yield from _score_portion(model, waiting.popleft())
            while waiting:
                yield from _score_portion(model, waiting.popleft())
        finally:  # whoever takes no more of them waits for no more than is being read
            pool.shutdown(wait=False, cancel_futures=True)


def _portions(items: Iterable[Item], n: int) -> Iterator[list[Item]]:
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, n)), [])


def _read(source: Path | bytes, model: TrainedModel) -> _Seen:
    """As in training: `network_pixels` of the decoded file; `load_image` is the same two calls."""
    raw = source if isinstance(source, bytes) else source.read_bytes()
    decoded = decode_for(raw, model.image)
    pixels = network_pixels(decoded.image, model.image)
    return _Seen(pixels, decoded.width_px, decoded.height_px, colour_of(raw, decoded.mode))


def _score_portion(model: TrainedModel, portion: list[tuple[str, Future]]) -> Iterator[Scored]:
    seen, errors = {}, {}
    for number, (_, reading) in enumerate(portion):
        try:
            seen[number] = reading.result()
        except ImageFileError as fault:
            errors[number] = str(fault)
        except IsADirectoryError:
            errors[number] = "a folder that holds no image"
        except OSError as fault:
            errors[number] = f"cannot be read: {fault.strerror or fault}"
        except MemoryError:
            errors[number] = "needs more memory than there is"
    found = iter(_score_images(model, list(seen.values()))) if seen else iter(())
    for number, (name, _) in enumerate(portion):
        yield Scored(name, error=errors[number]) if number in errors else Scored(name, **next(found))


def _score_images(model: TrainedModel, images: list[_Seen]) -> Iterator[dict]:
    # Imported here: whoever only asks for the words above need not wait for Keras.
    from pneumolib.learning.predicting import logits_of

    pixels = np.stack([image.pixels for image in images])
    logits = logits_of(model.network, pixels)
    warnings = [()] * len(images)
    if model.familiarity:
        files = pd.DataFrame(
            [(i.width_px, i.height_px, i.colour) for i in images], columns=["width_px", "height_px", "colour"]
        )
        warnings = model.familiarity.warnings(model.familiarity.facts(pixels, files))
    probabilities, calibrated = expit(logits), model.calibration.apply(logits)
    for n in range(len(images)):
        yield {
            "probability": float(probabilities[n]),
            "calibrated": float(calibrated[n]),
            "call": LABEL_NAMES[int(probabilities[n] >= model.threshold)],
            "warnings": warnings[n],
            "pixels": pixels[n],
        }
