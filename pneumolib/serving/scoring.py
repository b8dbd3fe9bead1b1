"""Files to probabilities, one after the other: what a terminal, a page and a test all call."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from pneumolib.data.decoding import ImageFileError
from pneumolib.data.images import load_image
from pneumolib.data.sources import LABEL_NAMES
from pneumolib.serving.trained import TrainedModel

BATCH = 64


@dataclass(frozen=True)
class Scored:
    """What a model says of one file; the numbers are None where `error` says why there are none.

    Attributes:
        name: as it was given.
        probability: of pneumonia, the network's own, to which the frozen threshold belongs.
        calibrated: of pneumonia, by the calibration that was frozen on validation.
        call: `pneumonia` or `normal`.
        warnings: what sets the image apart from the training images, in words.
        error: why the file could not be read.
    """

    name: str
    probability: float | None = None
    calibrated: float | None = None
    call: str | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None


def read_one(source: Path | bytes, model: TrainedModel) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixels that the network sees of a file, uint8 (size_px, size_px, channels), and what is unusual about it.

    Raises:
        ImageFileError: a file that gives no image, with the reason.
        OSError: a file that cannot be read.
    """
    return load_image(source, model.image), ()


def score(model: TrainedModel, items: Iterable[tuple[str, Path | bytes]], batch: int = BATCH) -> Iterator[Scored]:
    """Score files in their order, a batch at a time, so that memory does not grow with their number.

    Args:
        items: a name for each file, and its path or its bytes.
    """
    for portion in itertools.batched(items, batch) if hasattr(itertools, "batched") else _batched(items, batch):
        yield from _score_portion(model, portion)


def _batched(items: Iterable, n: int) -> Iterator[tuple]:
    items = iter(items)
    return iter(lambda: tuple(itertools.islice(items, n)), ())


def _score_portion(model: TrainedModel, portion: tuple[tuple[str, Path | bytes], ...]) -> Iterator[Scored]:
    seen, warned, errors = {}, {}, {}
    for number, (_, source) in enumerate(portion):
        try:
            seen[number], warned[number] = read_one(source, model)
        except ImageFileError as fault:
            errors[number] = str(fault)
        except OSError as fault:
            errors[number] = f"cannot be read: {fault.strerror or fault}"
    logits = {}
    if seen:
        values = np.asarray(model.network.predict_on_batch(np.stack(list(seen.values()))))[:, 0].astype(np.float64)
        logits = dict(zip(seen, values, strict=True))
    for number, (name, _) in enumerate(portion):
        if number in errors:
            yield Scored(name, error=errors[number])
            continue
        probability = float(expit(logits[number]))
        call = LABEL_NAMES[int(probability >= model.threshold)]
        calibrated = float(model.calibration.apply(logits[number]))
        yield Scored(name, probability, calibrated, call, warned[number])
