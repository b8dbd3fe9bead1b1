"""A trained model for other programs: written, checked against Keras on twenty images, and only then put in its place.

What is asked, written and checked; `learning.exporting` makes the files, `handover` says what stands in `model.json`.
"""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import expit

from pneumolib.data.drawing import KINDS, draw_radiograph
from pneumolib.data.pixels import load_image
from pneumolib.params import ImageParams
from pneumolib.serving.handover import HANDOVER_FILE, Checked, handover, strange_files
from pneumolib.serving.quiet import aside
from pneumolib.serving.trained import TrainedModel, find_run, load_trained

# Of a probability. Deep networks with random weights moved by up to 5e-5, and by 2e-5 within Keras itself when images came one
# by one: sums in another order. What is wrong, and no rounding, moves far more.
TOLERANCE = 1e-4
IMAGES = 20
_DRAWING_SEED = 20

Predict = Callable[[np.ndarray], np.ndarray]


class ExportError(RuntimeError):
    """No export; the message says why and what to do. What was there before is as it was."""


class RefusedError(ExportError):
    """What is asked for cannot be done here; nothing was tried."""


@dataclass(frozen=True)
class Format:
    """One way to write a network.

    Attributes:
        packages: import name to pip's name of what it needs besides Keras and TensorFlow.
        reader: what reads it in the check.
    """

    packages: dict[str, str]
    reader: str


FORMATS = {
    "savedmodel": Format({}, "TensorFlow's SavedModel loader"),
    "litert": Format({"ai_edge_litert": "ai-edge-litert"}, "LiteRT"),
    "onnx": Format({name: name for name in ("onnx", "onnxruntime", "tf2onnx")}, "ONNX Runtime"),
    "json": Format({}, "Keras, built anew from the files"),
}
_NOTHING = "Nothing was exported"


def export_run(
    run: str | Path, kind: str, to: Path | None = None, overwrite: bool = False, force: bool = False
) -> Path:
    """Export a run's model and say on the way what is done; returns the folder.

    Args:
        run: its folder, or `study/run`.
        kind: one of `FORMATS`.
        to: the folder to make; `export/<kind>` in the run's folder by default.
        overwrite: replace an earlier export there. A folder that holds anything else is never replaced.
        force: take a model file that is not the one the run recorded.
    Raises:
        ModelError: a run whose model cannot be used.
        RefusedError: no such format, a package that is missing, or a folder that is there already or cannot be made.
        ExportError: an exporter that fails, or files whose probabilities are not those of Keras.
    """
    check_packages(kind)
    folder = find_run(run)
    target = Path(to).resolve() if to else folder / "export" / kind
    check_target(target, overwrite)
    model = load_trained(run, force)
    print(f"{model.name} as {kind}, to {os.path.relpath(target)}", flush=True)
    with _workplace(target) as fresh:
        checked = write_checked(model, kind, fresh)
        facts = handover(model, kind, fresh, checked, list(FORMATS[kind].packages.values()))
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (fresh / HANDOVER_FILE).write_text(text + "\n", encoding="utf-8")
    print("\n".join(checked.in_words()), flush=True)
    return target


def check_packages(kind: str) -> None:
    """Raise RefusedError where the format is unknown or needs what is not installed."""
    if kind not in FORMATS:
        raise RefusedError(f"--format: received {kind!r}, allowed {', '.join(FORMATS)}")
    missing = [name for module, name in FORMATS[kind].packages.items() if find_spec(module) is None]
    if missing:
        raise RefusedError(
            f'--format {kind} needs {" and ".join(missing)}, not installed here: pip install "pneumolib[export]"'
        )


def check_target(target: Path, overwrite: bool) -> None:
    """Raise RefusedError where the folder must not be made or replaced."""
    if target.exists() and not target.is_dir():
        raise RefusedError(f"{target} is a file; name a folder: --to DIR")
    if strange := strange_files(target):
        raise RefusedError(f"{target} holds {strange[0]}, which no export wrote; name another folder: --to DIR")
    if target.exists() and not overwrite:
        raise RefusedError(f"{target} is there already; replace it: --overwrite, or name another folder: --to DIR")


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, which takes its place at the end, unless anything was raised."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as fault:
        raise RefusedError(
            f"{target.parent} cannot be written to: {fault.strerror}. Name another folder: --to DIR"
        ) from fault
    with place as name:
        fresh = Path(name) / "new"  # the temporary folder itself may be read by its owner alone
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(target, Path(name) / "old")
        os.replace(fresh, target)


def write_checked(model: TrainedModel, kind: str, folder: Path) -> Checked:
    """Write the model into an empty folder and compare what another program makes of it with Keras.

    Raises:
        ExportError: the exporter or the other program fails, or their probabilities differ by more than `TOLERANCE`.
    """
    # Imported here: it brings TensorFlow.
    from pneumolib.learning import exporting

    if exporting.backend() != "tensorflow":
        raise RefusedError(
            f"Keras runs on {exporting.backend()} in this process, and its exporters need TensorFlow: restart with "
            f"KERAS_BACKEND=tensorflow, as `pneumolib export` does by itself; a network trained on either is read by it"
        )
    network, pixels = exporting.in_float32(model.network), check_pixels(model.image)
    saved = expit(exporting.logits(model.network, pixels))
    expected = saved if network is model.network else expit(exporting.logits(network, pixels))
    found = _written_and_read(network, model.name, kind, folder, pixels)
    return Checked(
        reader=FORMATS[kind].reader,
        images=IMAGES,
        batches=(1, IMAGES),
        tolerance=TOLERANCE,
        difference=_largest_difference(kind, found, expected),
        lowest=float(expected.min()),
        highest=float(expected.max()),
        precisions=tuple(exporting.computes_in(model.network)),
        moved=float(np.abs(saved - expected).max()),
        calls_moved=int(((saved >= model.threshold) != (expected >= model.threshold)).sum()),
    )


def _written_and_read(network: Any, name: str, kind: str, folder: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Write the network; what another program then says of the pixels, one by one and together."""
    from pneumolib.learning import exporting

    with aside() as said:
        try:
            exporting.write_network(network, kind, folder)
            return probabilities(_reader(kind, folder), pixels)
        # Broad, because each exporter and each program has exceptions of its own.
        except Exception as fault:
            first = str(fault).strip().splitlines() or [""]
            raise ExportError(
                f"{name} cannot be written as {kind} and read again: {type(fault).__name__}: {first[0].rstrip('.')}. "
                f"{_NOTHING}. Last words of the exporter:\n{said()}"
            ) from fault


def check_pixels(image: ImageParams) -> np.ndarray:
    """Twenty drawn radiographs of all kinds, from as exposed as in training to as in another hospital, prepared as any file.

    Returns:
        uint8 (20, size_px, size_px, channels).
    """
    seen = []
    for number in range(IMAGES):
        kind, shift = KINDS[number % len(KINDS)], number / (IMAGES - 1)
        file = io.BytesIO()
        Image.fromarray(draw_radiograph(kind, number, seed=_DRAWING_SEED, shift=shift)).save(file, "PNG")
        seen.append(load_image(file.getvalue(), image))
    return np.stack(seen)


def probabilities(predict: Predict, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What a program says of images one by one and of all together, each float32 (n, 1)."""
    one_by_one = np.concatenate([predict(pixels[n : n + 1]) for n in range(len(pixels))])
    return {"one by one": one_by_one, "together": predict(pixels)}


def _largest_difference(kind: str, found: dict[str, np.ndarray], expected: np.ndarray) -> float:
    """Of any probability from Keras's, float64 (n,). Raises ExportError where it, or a shape, is not as it must be."""
    largest = 0.0
    for way, values in found.items():
        if values.shape != (len(expected), 1) or values.dtype != np.float32:
            raise ExportError(
                f"{kind}, {way}: the output is {values.dtype} {values.shape}, expected float32 ({len(expected)}, 1). {_NOTHING}"
            )
        differences = np.abs(values[:, 0].astype(np.float64) - expected)
        differences[np.isnan(differences)] = np.inf
        worst = int(differences.argmax())
        if differences[worst] > TOLERANCE:
            raise ExportError(
                f"{kind}, {way}: {FORMATS[kind].reader} gives drawn radiograph {worst + 1} of {len(expected)} a probability "
                f"of {values[worst, 0]:.7f} where Keras gives {expected[worst]:.7f}; {differences[worst]:.1e} apart, allowed "
                f"{TOLERANCE:.0e}; {int((differences > TOLERANCE).sum())} of them differ. {_NOTHING}"
            )
        largest = max(largest, float(differences[worst]))
    return largest


def _reader(kind: str, folder: Path) -> Predict:
    """The written files as a program reads them that is not the network they were written from."""
    from pneumolib.learning import exporting

    if kind == "litert":
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(folder / "model.tflite")).get_signature_runner("serving_default")
        return lambda pixels: runner(pixels=pixels)["probability"]
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(["probability"], {"pixels": pixels})[0]
    return (exporting.read_saved_model if kind == "savedmodel" else exporting.read_json)(folder)
