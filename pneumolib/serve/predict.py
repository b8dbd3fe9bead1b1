"""What a trained model says of files: scored one after the other, and written as a table, CSV, JSON and a folder of maps.

Images go batch by batch, so that thousands of files take no more memory than a few batches. A file's name can hold anything:
the table, standard error and CSV show it by `pneumolib.text`, JSON holds it as it is, and the batch goes on.
"""

import csv
import glob
import itertools
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.decode import check_not_blank, form_of, read_file
from pneumolib.data.facts import colour_of
from pneumolib.data.layout import IGNORED, IMAGE_SUFFIXES, LABEL_NAMES, bar
from pneumolib.data.pixels import decode_for, network_pixels
from pneumolib.errors import ImageFileError, InputError
from pneumolib.evaluation.calibration import REFER
from pneumolib.reporting.prose import sentence
from pneumolib.serve.trained import RESEARCH_ONLY, TrainedModel, load_trained
from pneumolib.text import csv_cell, printable

COLUMNS = ["file", "probability", "threshold", "predicted_class", "warnings", "error", "map"]
MAP_PX = 512  # the longer side of an overlay
STDOUT = "-"
BATCH = 64
_AHEAD = 2  # batches that are read while one is predicted
Item = tuple[str, Path | bytes]
Writer = Callable[["Scored", str], None]  # takes a row and the file of its map, which may be ""


@dataclass(frozen=True)
class Scored:
    """What a model says of one file; the numbers are None where `error` says why there are none.

    Attributes:
        name: as it was given.
        probability: of pneumonia, by the calibration that was frozen on validation.
        predicted_class: `pneumonia`, `normal`, or `refer` where a person has to look.
        warnings: what sets the image apart from the training images, in words; see `data.facts`.
        pixels: what the network saw, uint8 (size_px, size_px, channels).
        error: why there is no prediction.
    """

    name: str
    probability: float | None = None
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
        while portion := list(itertools.islice(items, batch)):
            waiting.append([(name, pool.submit(_read, source, model)) for name, source in portion])
            if len(waiting) > _AHEAD:
                yield from _score_portion(model, waiting.popleft())
        for readings in waiting:
            yield from _score_portion(model, readings)


def _read(source: Path | bytes, model: TrainedModel) -> tuple[np.ndarray, tuple[int, int, float]] | str:
    """The network's pixels, as in training, and the file's width, height and colour; or why the file cannot be read."""
    try:
        raw = source if isinstance(source, bytes) else read_file(source, model.limits)
        decoded = decode_for(raw, model.image, model.limits)
        check_not_blank(decoded.image)
        pixels = network_pixels(decoded.image, model.image)
        return pixels, (decoded.width_px, decoded.height_px, colour_of(raw, decoded.mode, model.limits))
    except ImageFileError as fault:
        return str(fault)
    except IsADirectoryError:
        return "a folder that holds no image"
    except OSError as fault:
        return f"cannot be read: {fault.strerror or fault}"


def _score_portion(model: TrainedModel, readings: list[tuple[str, Future]]) -> Iterator[Scored]:
    # Imported here: a bad argument is refused without waiting for Keras.
    from pneumolib.learning.predicting import logits_of

    outcomes = [(name, reading.result()) for name, reading in readings]
    seen, found = [outcome for _, outcome in outcomes if not isinstance(outcome, str)], iter(())
    if seen:
        pixels = np.stack([pixels for pixels, _ in seen])
        logits = logits_of(model.network, pixels)
        warnings = [()] * len(seen)
        if model.ood:
            files = pd.DataFrame([facts for _, facts in seen], columns=["width_px", "height_px", "colour"])
            warnings = model.ood.warnings(model.ood.facts(pixels, files))
        found = zip(logits.tolist(), warnings, pixels, strict=True)
    for name, outcome in outcomes:
        if isinstance(outcome, str):
            yield Scored(name, error=outcome)
            continue
        logit, *rest = next(found)
        if not np.isfinite(logit):  # a class comes from a number only
            yield Scored(name, error=f"the network gives no finite number for this image: {logit}")
            continue
        probability = float(model.calibration.apply(logit))
        yield Scored(name, probability, str(model.threshold.classes([probability])[0]), *rest)


def predict_files(
    run: str, named: list[str], csv_to: str = "", json_to: str = "", maps_to: str = "", force: bool = False
) -> int:
    """Score images and write what came out, row by row.

    Args:
        run: a run's folder, or `study/run`.
        named: files, folders and patterns; see `image_files`.
        csv_to, json_to: files to write, `-` for standard output; without either a table is printed.
        maps_to: a folder for Grad-CAM overlays.
        force: take a model file that is not the recorded one.
    Returns:
        the exit code: 0, or 1 when a file could not be read.
    Raises:
        ModelError: a run that cannot be used.
        InputError: what is asked for cannot be written.
    """
    if csv_to and csv_to == json_to:
        raise InputError(f"--csv {csv_to} and --json {json_to}: both to one place; name two")
    files = list(image_files(named))
    model = load_trained(run, force)
    share = model.ood and model.ood.validation_warnings["any"]
    about = sentence("serve.about", model=model, share=share).replace("\n\n", "\n")
    print(printable(about, "\n"), RESEARCH_ONLY, sep="\n", file=sys.stderr)
    counts = Counter(dict.fromkeys((*LABEL_NAMES.values(), REFER, "unreadable", "warned"), 0))
    with ExitStack() as opened:
        outputs = [make(to, model) for make, to in ((csv_rows, csv_to), (json_rows, json_to)) if to]
        writers = [opened.enter_context(output) for output in outputs] or [table_rows(model)]
        rows = score_images(model, files)
        if outputs or not sys.stdout.isatty():  # a bar would tear a table on the same terminal
            rows = bar(rows, len(files), "predicting")
        for scored, map_file in with_maps(model, rows, maps_to, [path for _, path in files]):
            counts[scored.predicted_class or "unreadable"] += 1
            counts["warned"] += bool(scored.warnings)
            if scored.error:
                print(printable(f"{scored.name}: {scored.error}"), file=sys.stderr)
            for write in writers:
                write(scored, map_file)
    print(sentence("serve.summary", counts=counts), file=sys.stderr)
    return 1 if counts["unreadable"] else 0


def image_files(named: list[str]) -> Iterator[Item]:
    """A name to show and a path for each image, in the order named; a folder's by name, with all folders in it.

    Of a folder or a pattern, files that are no images by their ending are left out; DICOM files often have none and are
    known by their content. A file that is named itself is always there, whatever it is, and so is a name that leads to
    nothing: reading it will say what is wrong.
    """
    for name in named:
        path, found = Path(name), []
        if os.path.isdir(name):  # unlike a path's own method, it raises nothing for a name that is too long
            found = path.rglob("*")
        elif glob.has_magic(name) and not os.path.exists(name):
            found = map(Path, glob.glob(name, recursive=True))
        yield from [(str(file), file) for file in sorted(found) if _is_image(file)] or [(name, path)]


def _is_image(file: Path) -> bool:
    if any(map(IGNORED.fullmatch, file.parts)):
        return False
    if file.suffix.lower() in IMAGE_SUFFIXES or not os.path.isfile(file):  # reading a link to nothing or a pipe says so
        return file.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(file)
    try:
        with file.open("rb") as opened:
            return form_of(opened.read(132)) == "DICOM"
    except OSError:  # a file of another person
        return False


def table_rows(model: TrainedModel) -> Writer:
    """A table on standard output, whose titles are printed now; the name comes last, because it may be long."""

    def write(scored: Scored, map_file: str) -> None:
        value = "-" if scored.error else f"{scored.probability:.4f}"
        name = f"{scored.name}: {scored.error}" if scored.error else scored.name
        print(line.format(value, threshold, scored.predicted_class or "-", printable(name)))
        below = [f"unlike the training images: {words}" for words in scored.warnings]
        for words in [*below, f"map: {map_file}"] if map_file else below:
            print(f"{'':>36}{printable(words)}")

    line, threshold = "{:>11}  {:>9}  {:<9}  {}", f"{model.threshold.value:.4f}"
    print(line.format("probability", "threshold", "class", "file"))
    return write


@contextmanager
def csv_rows(to: str, model: TrainedModel) -> Iterator[Writer]:
    """`COLUMNS` as CSV; several warnings share one field, separated by semicolons."""
    with _destination(to) as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        yield lambda scored, map_file: table.writerow(csv_row(model, scored, map_file))


def csv_row(model: TrainedModel, scored: Scored, map_file: str = "") -> dict[str, Any]:
    """`COLUMNS` of one file as cells of a CSV; see `text.csv_cell`."""
    cells = row(model, scored, map_file) | {"warnings": "; ".join(scored.warnings)}
    return {column: csv_cell(cell) for column, cell in cells.items()}


@contextmanager
def json_rows(to: str, model: TrainedModel) -> Iterator[Writer]:
    """One object: `model`, what scored them, and `images`, `COLUMNS` of each."""
    facts = model.result.model_dump(include={"study", "run", "model_sha256", "synthetic"}) | {
        "commit": model.result.provenance.commit,
        "threshold": model.threshold.value,
        "refer": [model.threshold.refer_low, model.threshold.refer_high],
        "calibration": model.calibration.in_words(),
        "validation_warnings": model.ood and model.ood.validation_warnings,
        "notice": RESEARCH_ONLY,
    }
    images = []
    with _destination(to) as file:
        try:
            yield lambda scored, map_file: images.append(row(model, scored, map_file))
        finally:
            json.dump({"model": facts, "images": images}, file, indent=1, allow_nan=False)
            file.write("\n")


def row(model: TrainedModel, scored: Scored, map_file: str = "") -> dict[str, Any]:
    """`COLUMNS` of one file."""
    values = [scored.name, scored.probability, model.threshold.value, scored.predicted_class]
    return dict(zip(COLUMNS, [*values, list(scored.warnings), scored.error, map_file or None], strict=True))


@contextmanager
def _destination(to: str) -> Iterator[IO[str]]:
    """Standard output, or a file that is there only when all of it is; of one that was cut short the part is kept."""
    if to == STDOUT:
        yield sys.stdout
        return
    if Path(to).is_dir():
        raise InputError(f"{to}: a folder is there; name a file")
    part = Path(f"{to}.part")
    try:
        file = part.open("w", encoding="utf-8", newline="")
    except OSError as fault:
        raise InputError(f"{to}: cannot be written: {fault.strerror}") from None
    try:
        with file:
            yield file
        os.replace(part, to)
    except OSError as fault:  # of a full disk, say, where the part would take the room that is needed
        part.unlink(missing_ok=True)
        raise OSError(fault.errno, fault.strerror, to) from None
    except BaseException:  # an interrupt above all: hours of work must not be lost with it
        print(f"\nCut short: what was done by then is in {part}", file=sys.stderr)
        raise


def with_maps(
    model: TrainedModel, rows: Iterable[Scored], folder: str | Path, inputs: Iterable[Path]
) -> Iterator[tuple[Scored, str]]:
    """Each row with the file of its Grad-CAM overlay, written by then; "" without a folder and for files that could not be read.

    A map is `<name>-map.png`, numbered where several images share a name, and never takes the place of one of the `inputs`.

    Raises:
        InputError: a folder that cannot be made.
    """
    if not folder:
        yield from ((scored, "") for scored in rows)
        return
    # Imported here: it takes a second, and most predictions need no maps.
    from pneumolib.learning.explain import grad_cam
    from pneumolib.reporting.gallery import overlay

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"--cam {folder}: cannot be made: {fault.strerror}") from None
    rows, taken = iter(rows), {_place(file) for file in inputs}
    while portion := list(itertools.islice(rows, BATCH)):
        read = [scored for scored in portion if scored.error is None]
        towards = np.array([int(scored.probability >= model.threshold.value) for scored in read])
        maps = iter(grad_cam(model.network, np.stack([one.pixels for one in read]), towards) if read else ())
        for scored in portion:
            file = "" if scored.error else _free_name(Path(folder), scored.name, taken)
            if file:
                Image.fromarray(overlay(scored.pixels, next(maps), MAP_PX)).save(file)
            yield scored, str(file)


def _place(file: Path) -> str:
    """Two names of one place are equal, also on disks that know no upper case."""
    return os.path.realpath(file).casefold()


def _free_name(folder: Path, name: str, taken: set[str]) -> Path:
    """`scan-map.png`, or with the first number that is free; it is taken from then on.

    Characters that cannot be seen, or that no file's name may hold on Windows, become `_`; a long name is cut.
    """
    seen = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in Path(name).stem)
    stem = f"{seen.encode()[:200].decode(errors='ignore')}-map"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    file = next(file for name in names if _place(file := folder / f"{name}.png") not in taken)
    taken.add(_place(file))
    return file
