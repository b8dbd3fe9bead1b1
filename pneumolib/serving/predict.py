"""`pneumolib predict`: what a trained model says of files, in a terminal."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from pneumolib.data.progress import bar
from pneumolib.data.sources import LABEL_NAMES
from pneumolib.serving.files import image_files
from pneumolib.serving.outputs import (
    check_destinations,
    csv_rows,
    json_rows,
    printed_table,
    with_maps,
)
from pneumolib.serving.scoring import Item, Scored, score
from pneumolib.serving.trained import RESEARCH_ONLY, TrainedModel, load_trained


def predict(
    run: str, named: list[str], csv_to: str = "", json_to: str = "", maps_to: str = "", force: bool = False
) -> int:
    """Score images and write down what came out, row by row, in memory that does not grow with their number.

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
        PredictError: what is asked for cannot be written.
    """
    check_destinations(csv_to, json_to)
    files = list(image_files(named))
    model = load_trained(run, force)
    print(_about(model), file=sys.stderr)
    counts: Counter[str] = Counter()
    with ExitStack() as opened:
        outputs = [make(to, model) for make, to in ((csv_rows, csv_to), (json_rows, json_to)) if to] or [
            printed_table()
        ]
        writers = [opened.enter_context(output) for output in outputs]
        with_bar = bool(csv_to or json_to or not sys.stdout.isatty())  # it would tear a table on the same terminal
        for scored, map_file in _scored(model, files, maps_to, with_bar):
            _count(counts, scored)
            for write in writers:
                write(scored, map_file)
    print(_summary(counts), file=sys.stderr)
    return 1 if counts["unreadable"] else 0


def _scored(model: TrainedModel, files: list[Item], maps_to: str, with_bar: bool) -> Iterator[tuple[Scored, str]]:
    """Each file's score and the file of its map, which may be ""."""
    rows = score(model, files)
    if with_bar:
        rows = bar(rows, len(files), "predicting")
    if maps_to:
        return with_maps(model, rows, Path(maps_to), [path for _, path in files])
    return ((row, "") for row in rows)


def _about(model: TrainedModel) -> str:
    known = model.familiarity
    alarms = (
        f"Images unlike the training images are named; of {known.validation_images} validation images, which are like them, "
        f"{known.validation_warnings['any']:.1%} would be."
        if known and known.validation_warnings["any"] is not None
        else "This run kept nothing of its training images that others could be compared with."
    )
    drawn = " Trained on drawn images: its figures mean nothing for patients." if model.result.synthetic else ""
    return (
        f"{model.name}: pneumonia from a probability of {model.threshold:.3f} on, the threshold frozen on validation.{drawn}\n"
        f"{alarms}\n{RESEARCH_ONLY}"
    )


def _count(counts: Counter, scored: Scored) -> None:
    counts[scored.call or "unreadable"] += 1
    counts["warned"] += bool(scored.warnings)
    if scored.error:
        print(f"{scored.name}: {scored.error}", file=sys.stderr)


def _summary(counts: Counter) -> str:
    calls = ", ".join(f"{counts[name]} {name}" for name in reversed(LABEL_NAMES.values()))
    broken = f"; {counts['unreadable']} could not be read" if counts["unreadable"] else ""
    images = sum(counts[name] for name in LABEL_NAMES.values())
    return f"{images} image(s): {calls}; {counts['warned']} unlike the training images{broken}."
