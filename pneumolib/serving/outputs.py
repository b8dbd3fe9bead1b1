"""Where predictions go: a table, CSV, JSON, and a folder of maps. Row by row, so that thousands take no more memory than one."""

import csv
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from pneumolib.data.sources import LABEL_NAMES
from pneumolib.serving.scoring import BATCH, Scored
from pneumolib.serving.trained import RESEARCH_ONLY, TrainedModel

COLUMNS = ["file", "probability", "calibrated", "threshold", "call", "warnings", "error", "map"]
MAP_PX = 512  # the longer side of an overlay
STDOUT = "-"
Writer = Callable[[Scored, str], None]  # takes a row and the file of its map, which may be ""


class PredictError(ValueError):
    """A request that cannot be done; the message says what was received and what to do."""


@contextmanager
def printed_table() -> Iterator[Writer]:
    """A table on standard output; the name stands last, because it may be long."""
    print(f"{'probability':>11}  {'calibrated':>10}  {'call':<9}  file")

    def write(scored: Scored, map_file: str) -> None:
        if scored.error:
            print(f"{'-':>11}  {'-':>10}  {'-':<9}  {scored.name}: {scored.error}")
            return
        print(f"{scored.probability:>11.4f}  {scored.calibrated:>10.4f}  {scored.call:<9}  {scored.name}")
        below = [f"unlike the training images: {words}" for words in scored.warnings]
        for words in [*below, f"map: {map_file}"] if map_file else below:
            print(f"{'':>37}{words}")

    yield write


@contextmanager
def csv_rows(to: str, model: TrainedModel) -> Iterator[Writer]:
    """`COLUMNS` as CSV; several warnings stand in one field, separated by semicolons."""
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
    with _destination(to) as file:
        head = json.dumps({"model": _facts(model)}, indent=1).removesuffix("}").rstrip()
        file.write(f'{head},\n "images": [')
        separators = itertools.chain(["\n"], itertools.repeat(",\n"))

        def write(scored: Scored, map_file: str) -> None:
            file.write(f"{next(separators)}  {json.dumps(_row(model, scored, map_file))}")

        yield write
        file.write("\n ]\n}\n")


def _facts(model: TrainedModel) -> dict[str, Any]:
    result = model.result
    return {
        "study": result.study,
        "run": result.run,
        "commit": result.provenance.commit,
        "model_sha256": result.model_sha256,
        "synthetic": result.synthetic,
        "threshold": model.threshold,
        "calibration": model.calibration.in_words(),
        "false_alarms": model.familiarity.validation_warnings if model.familiarity else None,
        "notice": RESEARCH_ONLY,
    }


def _row(model: TrainedModel, scored: Scored, map_file: str) -> dict[str, Any]:
    return {
        "file": scored.name,
        "probability": scored.probability,
        "calibrated": scored.calibrated,
        "threshold": model.threshold,
        "call": scored.call,
        "warnings": list(scored.warnings),
        "error": scored.error,
        "map": map_file or None,
    }


@contextmanager
def _destination(to: str) -> Iterator[IO[str]]:
    """Standard output, or a file that is there only when all of it is; of one that was cut short the part is kept."""
    if to == STDOUT:
        yield sys.stdout
        return
    part = Path(f"{to}.part")
    try:
        file = part.open("w", encoding="utf-8", newline="")
    except OSError as fault:
        raise PredictError(f"{to}: cannot be written: {fault.strerror}") from None
    with file:
        try:
            yield file
        except BaseException:  # an interrupt above all: hours of work must not be lost with it
            print(f"\nCut short: what was done by then is in {part}", file=sys.stderr)
            raise
    os.replace(part, to)


def check_destinations(csv_to: str, json_to: str) -> None:
    """Raise PredictError where outputs would meet, or could not be written; asked before anything is scored."""
    if csv_to and csv_to == json_to:
        raise PredictError(f"--csv {csv_to} and --json {json_to}: both to one place; name two")
    for to in (csv_to, json_to):
        if to and to != STDOUT and Path(to).is_dir():
            raise PredictError(f"{to}: a folder is there; name a file")


def with_maps(
    model: TrainedModel, rows: Iterable[Scored], folder: Path, inputs: Iterable[Path]
) -> Iterator[tuple[Scored, str]]:
    """Each row with the file of its Grad-CAM overlay, written by then; "" for files that could not be read.

    A map is `<name>-map.png`, numbered where several images of this call share a name, and never takes the place of one of
    the `inputs`.

    Raises:
        PredictError: a folder that cannot be made, or a network that has no maps.
    """
    # Imported here: it takes a second, and most calls want no maps.
    from pneumolib.learning.explain import grad_cam
    from pneumolib.reporting.overlays import overlay

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise PredictError(f"--cam {folder}: cannot be made: {fault.strerror}") from None
    label_of, taken, rows = {name: label for label, name in LABEL_NAMES.items()}, _places(inputs), iter(rows)
    while portion := list(itertools.islice(rows, BATCH)):
        good = [scored for scored in portion if scored.pixels is not None]
        calls = np.array([label_of[scored.call] for scored in good])
        try:
            maps = iter(grad_cam(model.network, np.stack([s.pixels for s in good]), calls) if good else ())
        except ValueError as fault:
            raise PredictError(f"--cam: {fault}") from None
        for scored in portion:
            file = _free_name(folder, scored.name, taken) if scored.pixels is not None else None
            if file:
                Image.fromarray(overlay(scored.pixels, next(maps), MAP_PX)).save(file)
            yield scored, str(file or "")


def _places(files: Iterable[Path]) -> set[str]:
    """Of files, so that two names of one place are equal, on disks that know no upper case, too."""
    return {os.path.realpath(file).casefold() for file in files}


def _free_name(folder: Path, name: str, taken: set[str]) -> Path:
    """`scan-map.png`, or with the first number that is free; it is taken from then on."""
    stem = f"{Path(name).stem}-map"
    names = itertools.chain([f"{stem}.png"], (f"{stem}-{number}.png" for number in itertools.count(2)))
    file = next(folder / one for one in names if not _places([folder / one]) & taken)
    taken |= _places([file])
    return file
