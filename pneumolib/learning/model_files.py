"""Which `.keras` files may be loaded: those that hold numbers and a network of Keras's own layers, and nothing that runs.

A `.keras` file is a zip archive of an architecture (JSON) and its weights (HDF5). Loading one builds the classes that the
JSON names, and several kinds of file have made Keras run code or read other files on the way (CVE-2025-1550, CVE-2025-8747,
CVE-2025-9905, CVE-2025-12058). So what may be named is listed here, and Keras is asked only then, in its safe mode.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
# Of images, in and out of backbones; whatever looks up words, wraps other libraries or holds Python code is not there.
LAYERS = {
    "InputLayer", "Conv2D", "Conv2DTranspose", "SeparableConv2D", "DepthwiseConv2D", "Dense", "EinsumDense",
    "MultiHeadAttention", "BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization",
    "Normalization", "Rescaling", "Resizing", "CenterCrop", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU",
    "Softmax", "Identity", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot",
    "MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Dropout",
    "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "Flatten", "Reshape", "Permute",
    "RepeatVector", "ZeroPadding2D", "Cropping2D", "UpSampling2D",
}  # fmt: skip
_MODELS = {"Functional", "Sequential", "Model"}
_OF_MODULE = {
    "keras": _MODELS | {"DTypePolicy"},
    "keras.models": _MODELS,
    "keras.src.models.functional": _MODELS,
    "keras.src.models.sequential": _MODELS,
    "keras.layers": LAYERS,
    "keras.src.applications.convnext": {"LayerScale"},
    "keras.src.applications.inception_resnet_v2": {"CustomScaleLayer"},
}
_WHOLE_MODULES = ("keras.initializers", "keras.regularizers", "keras.constraints", "keras.dtype_policies")
_CLASS = re.compile(
    r"[A-Z][A-Za-z0-9]*"
)  # no function, and none of the names in underscores that Keras treats otherwise
_ARITHMETIC = re.compile(r"keras\.src\.ops\.(numpy|nn|math|image)")
_VALUES = {None, "__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__slice__", "__dtype__"}
_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # protocols 2 to 5 say so in their first two bytes
_LARGEST_RATIO, _SPARE = 20, 2**26  # weights are hardly compressible; a bomb begins at a thousand


class ModelFileError(ValueError):
    """A file that must not be loaded, or cannot be; the message says what is in it."""


def load_network(file: Path) -> Any:
    """The `keras.Model` of a `.keras` file, not compiled.

    Raises:
        ModelFileError: as `check_model_file`, or a file that Keras cannot read.
    """
    check_model_file(file)
    import keras

    try:
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    # Broad, because what Keras and its backend raise for an architecture that contradicts itself has no common kind.
    except Exception as cause:
        raise ModelFileError(f"{file}: Keras cannot read it: {cause}") from cause


def check_model_file(file: Path) -> None:
    """Refuse a file that holds anything but an architecture of known layers and numbers. Nothing of it is run or built.

    Raises:
        ModelFileError: no such file, another kind of file, members that do not belong there, a class that is not
            allowed, or weights that lead out of the file.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(8)
    except OSError as fault:
        raise ModelFileError(f"{file}: cannot be read: {fault.strerror}") from None
    if not start.startswith(_ZIP):
        raise ModelFileError(f"{file}: refused: {_what_it_is(start)}")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(file, archive)
            for name in ("metadata.json", "config.json"):
                _check_config(file, name, json.loads(archive.read(name)))
            with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as numbers:
                _check_weights(file, numbers)
    except (zipfile.BadZipFile, zlib.error, json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError, RuntimeError,
            NotImplementedError, RecursionError) as fault:  # fmt: skip
        raise ModelFileError(f"{file}: broken: {fault}") from None


def _what_it_is(start: bytes) -> str:
    if _PICKLE.match(start):
        return "a pickle, which runs whatever code its maker put in. Ask for a .keras file saved with Keras 3"
    if start == _HDF5:
        return (
            "HDF5, the format of models before Keras 3, which may hold Python code. Load it where you trust it, and save it "
            "anew with model.save('model.keras')"
        )
    return f"no .keras file: it begins with {start!r}"


def _check_members(file: Path, archive: zipfile.ZipFile) -> None:
    names = [member.filename for member in archive.infolist()]
    if sorted(names) != sorted(MEMBERS):
        more = sorted(set(names) - MEMBERS)
        said = [f"holds {name}{_kind_of(archive, name)}" for name in more[:5]]
        said += [f"lacks {name}" for name in sorted(MEMBERS - set(names))]
        said += [f"holds {name} twice" for name in sorted(MEMBERS) if names.count(name) > 1]
        raise ModelFileError(
            f"{file}: refused: {'; '.join(said)}. A .keras file holds {', '.join(sorted(MEMBERS))} alone"
        )
    size, total = file.stat().st_size, sum(member.file_size for member in archive.infolist())
    if total > _LARGEST_RATIO * size + _SPARE:
        raise ModelFileError(f"{file}: refused: {size:,} bytes that would unpack to {total:,}")


def _kind_of(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as member:
        pickled = _PICKLE.match(member.read(2)) or name.endswith((".pkl", ".pickle"))
    return ", a pickle, which runs code when it is loaded" if pickled else ""


def _check_config(file: Path, name: str, config: Any) -> None:
    if name == "config.json" and isinstance(config, dict):
        config = {
            key: value for key, value in config.items() if key != "compile_config"
        }  # not read: it is not compiled
    for entry in _dicts(config):
        module, kind = entry.get("module"), entry.get("class_name")
        # Keras asks for the registered name first, which a package elsewhere may have given to a class of its own.
        registered = entry.get("registered_name")
        if not _allowed(module, kind) or registered not in (None, kind):
            raise ModelFileError(f"{file}: refused: {name} names {_in_words(module, kind)}")


def _dicts(value: Any) -> Iterator[dict]:
    """All dictionaries within a value, itself among them."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dicts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _dicts(inner)


def _allowed(module: Any, kind: Any) -> bool:
    if not isinstance(module, str | None) or not isinstance(kind, str | None):
        return False
    if module is None:
        return kind in _VALUES
    if kind in _OF_MODULE.get(module, ()):
        return True
    known = module in _WHOLE_MODULES or _ARITHMETIC.fullmatch(module)
    return bool(known) and bool(_CLASS.fullmatch(kind or ""))


def _in_words(module: Any, kind: Any) -> str:
    if "Lambda" in str(kind) or kind == "__lambda__":
        return (
            "a Lambda: Python code inside the file, which would run here. Have its maker replace it by layers of Keras"
        )
    return (
        f"{module}.{kind}, which is none of the layers and values that a network of images is made of here. If it is "
        f"harmless, add it in pneumolib/learning/model_files.py"
    )


def _check_weights(file: Path, numbers: h5py.File) -> None:
    """Arrays of numbers, all within the file: no links out, no arrays kept elsewhere, no objects."""

    def check(group: h5py.Group) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ModelFileError(f"{file}: refused: its weights hold a link, {group.name}/{name}, to another place")
            item = group[name]
            if isinstance(item, h5py.Group):
                check(item)
            elif (
                not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.dtype.kind not in "fiub"
            ):
                raise ModelFileError(
                    f"{file}: refused: {item.name} in its weights is no array of numbers within the file ({item.dtype})"
                )

    check(numbers)
