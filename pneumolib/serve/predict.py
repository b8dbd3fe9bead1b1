"""`pneumolib predict`: what a trained model says of files, as a table, CSV, JSON and a folder of maps.

All of it goes row by row, so that thousands of files take no more memory than one batch.
"""

import csv
import glob
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from pneumolib.data.decode import form_of
from pneumolib.data.layout import IGNORED, IMAGE_SUFFIXES, LABEL_NAMES, bar
from pneumolib.errors import InputError
from pneumolib.serve.score import BATCH, Item, Scored, score_images
from pneumolib.serve.trained import RESEARCH_ONLY, TrainedModel, load_trained

COLUMNS = ["file", "probability", "calibrated", "threshold", "predicted_class", "warnings", "error", "map"]
MAP_PX = 512  # the longer side of an overlay
STDOUT = "-"
Writer = Callable[[Scored, str], None]  # takes a row and the file of its map, which may be ""


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
    print(_about(model), file=sys.stderr)
    counts: Counter[str] = Counter()
    with ExitStack() as opened:
        outputs = [make(to, model) for make, to in ((csv_rows, csv_to), (json_rows, json_to)) if to]
        writers = [opened.enter_context(output) for output in outputs] or [print_row]
        if not outputs:
            print(f"{'probability':>11}  {'calibrated':>10}  {'class':<9}  file")
        rows = score_images(model, files)
        if outputs or not sys.stdout.isatty():  # a bar would tear a table on the same terminal
            rows = bar(rows, len(files), "predicting")
        for scored, map_file in with_maps(model, rows, maps_to, [path for _, path in files]):
            counts[scored.predicted_class or "unreadable"] += 1
            counts["warned"] += bool(scored.warnings)
            if scored.error:
                print(f"{scored.name}: {scored.error}", file=sys.stderr)
            for write in writers:
                write(scored, map_file)
    print(_summary(counts), file=sys.stderr)
    return 1 if counts["unreadable"] else 0


def _about(model: TrainedModel) -> str:
    said = (
        f"{model.name}: pneumonia from a probability of {model.threshold:.3f} on, the threshold frozen on validation."
    )
    said += " Trained on drawn images: its figures mean nothing for patients." * model.result.synthetic
    known = model.ood
    if known and known.validation_warnings["any"] is not None:
        said += f"\nImages unlike the training images are named; of {known.validation_images} validation images, which are like "
        said += f"them, {known.validation_warnings['any']:.1%} would be."
    else:
        said += "\nThis run kept nothing of its training images that others could be compared with."
    return f"{said}\n{RESEARCH_ONLY}"


def _summary(counts: Counter) -> str:
    classes = ", ".join(f"{counts[name]} {name}" for name in reversed(LABEL_NAMES.values()))
    images = sum(counts[name] for name in LABEL_NAMES.values())
    broken = f"; {counts['unreadable']} could not be read" if counts["unreadable"] else ""
    return f"{images} image(s): {classes}; {counts['warned']} unlike the training images{broken}."


def image_files(named: list[str]) -> Iterator[Item]:
    """A name to show and a path for each image, in the order named; a folder's by name, with all folders in it.

    Of a folder or a pattern, files that are no images by their ending are left out; DICOM files often have none and are
    known by their content. A file that is named itself is always there, whatever it is, and so is a name that leads to
    nothing: reading it will say what is wrong.
    """
    for name in named:
        path = Path(name)
        if path.is_dir():
            found = _images_below(path)
        elif glob.has_magic(name) and not path.exists():
            found = [file for match in sorted(glob.glob(name, recursive=True)) if _is_image(file := Path(match))]
        else:
            yield name, path
            continue
        yield from ((str(file), file) for file in found or [path])


def _images_below(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not IGNORED.fullmatch(name))
        found += [file for name in sorted(files) if _is_image(file := Path(place, name))]
    return found


def _is_image(file: Path) -> bool:
    if IGNORED.fullmatch(file.name) or not file.is_file():  # a named pipe, say, which nothing could be read from
        return False
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with file.open("rb") as opened:
            return form_of(opened.read(132)) == "DICOM"
    except OSError:  # a file of another person
        return False


def print_row(scored: Scored, map_file: str) -> None:
    """A row of the table on standard output; the name comes last, because it may be long."""
    if scored.error:
        print(f"{'-':>11}  {'-':>10}  {'-':<9}  {scored.name}: {scored.error}")
        return
    print(f"{scored.probability:>11.4f}  {scored.calibrated:>10.4f}  {scored.predicted_class:<9}  {scored.name}")
    below = [f"unlike the training images: {words}" for words in scored.warnings]
    for words in [*below, f"map: {map_file}"] if map_file else below:
        print(f"{'':>37}{words}")


@contextmanager
def csv_rows(to: str, model: TrainedModel) -> Iterator[Writer]:
    """`COLUMNS` as CSV; several warnings share one field, separated by semicolons."""
    with _destination(to) as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()

        def write(scored: Scored, map_file: str) -> None:
            row = _row(model, scored, map_file) | {"warnings": "; ".join(scored.warnings)}
            table.writerow({column: inert(cell) if isinstance(cell, str) else cell for column, cell in row.items()})

        yield write


def inert(cell: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


@contextmanager
def json_rows(to: str, model: TrainedModel) -> Iterator[Writer]:
    """One object: `model`, what scored them, and `images`, `COLUMNS` of each."""
    known = model.ood
    facts = model.result.model_dump(include={"study", "run", "model_sha256", "synthetic"}) | {
        "commit": model.result.provenance.commit,
        "threshold": model.threshold,
        "calibration": model.calibration.in_words(),
        "validation_warnings": known.validation_warnings if known else None,
        "notice": RESEARCH_ONLY,
    }
    with _destination(to) as file:
        head = json.dumps({"model": facts}, indent=1).removesuffix("\n}")
        file.write(f'{head},\n "images": [')
        separators = itertools.chain(["\n"], itertools.repeat(",\n"))

        def write(scored: Scored, map_file: str) -> None:
            file.write(f"{next(separators)}  {json.dumps(_row(model, scored, map_file))}")

        yield write
        file.write("\n ]\n}\n")


def _row(model: TrainedModel, scored: Scored, map_file: str) -> dict[str, Any]:
    values = [scored.name, scored.probability, scored.calibrated, model.threshold, scored.predicted_class]
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
    with file:
        try:
            yield file
        except BaseException:  # an interrupt above all: hours of work must not be lost with it
            print(f"\nCut short: what was done by then is in {part}", file=sys.stderr)
            raise
    os.replace(part, to)


def with_maps(
    model: TrainedModel, rows: Iterable[Scored], folder: str | Path, inputs: Iterable[Path]
) -> Iterator[tuple[Scored, str]]:
    """Each row with the file of its Grad-CAM overlay, written by then; "" without a folder and for files that could not be read.

    A map is `<name>-map.png`, numbered where several images share a name, and never takes the place of one of the `inputs`.

    Raises:
        InputError: a folder that cannot be made, or a network that has no maps.
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
        towards = np.array([int(scored.predicted_class == LABEL_NAMES[1]) for scored in read])
        try:
            maps = iter(grad_cam(model.network, np.stack([one.pixels for one in read]), towards) if read else ())
        except (InputError, ValueError) as fault:
            raise InputError(f"--cam: {fault}") from None
        for scored in portion:
            file = "" if scored.error else _free_name(Path(folder), scored.name, taken)
            if file:
                Image.fromarray(overlay(scored.pixels, next(maps), MAP_PX)).save(file)
            yield scored, str(file)


def _place(file: Path) -> str:
    """Two names of one place are equal, also on disks that know no upper case."""
    return os.path.realpath(file).casefold()


def _free_name(folder: Path, name: str, taken: set[str]) -> Path:
    """`scan-map.png`, or with the first number that is free; it is taken from then on."""
    stem = f"{Path(name).stem}-map"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    file = next(file for name in names if _place(file := folder / f"{name}.png") not in taken)
    taken.add(_place(file))
    return file
