"""PneumoniaMNIST-style `.npz` files: arrays of small images, unpacked once to PNG files and a table of paths."""

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.archive import build
from pneumolib.data.progress import bar
from pneumolib.data.sources import CLASSES, SPLITS, ManifestError


def unpack_npz(file: Path, cache_dir: Path) -> Path:
    """Write the images beside a `manifest.csv` and return the table's path; done once for a file's size and time.

    Arrays: `<split>_images` uint8 (n, height, width) or (n, height, width, 3) and `<split>_labels` (n, 1) or (n,) with
    1 = pneumonia, for splits train, val and test (Yang et al., MedMNIST v2, Scientific Data 2023;10:41). The files
    name no patient, so every image stands as a group of its own; that is said on stderr, because intervals come out too
    narrow and validation too easy.

    Raises:
        ManifestError: no such file, no arrays of this form, or labels other than 0 and 1.
    """
    if not zipfile.is_zipfile(file):
        raise ManifestError(
            f"data.root: {file} is no whole .npz file; data.source: npz wants one such as pneumoniamnist.npz, data.source: "
            f"csv a table of paths"
        )
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_dir / f"npz-{key}"
    print(f"{file.name} names no patients: each image counts as a group of its own", file=sys.stderr)
    try:
        build(target, {"npz": file.name}, lambda folder: _write(_read_arrays(file), folder))
    except FileExistsError as fault:
        raise ManifestError(f"{fault}. Delete that folder of the cache") from None
    return target / "manifest.csv"


def _read_arrays(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        with file.open("rb") as raw, np.load(raw, allow_pickle=False) as archive:
            names = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
            if missing := [name for name in names if name not in archive]:
                raise ManifestError(f"{file}: missing {', '.join(missing)}; found {', '.join(archive.files) or 'none'}")
            arrays = {s: (archive[f"{s}_images"], archive[f"{s}_labels"].reshape(-1)) for s in SPLITS}
    except ManifestError:
        raise
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as fault:
        raise ManifestError(f"{file}: not a whole .npz file: {fault}") from None
    for split, (images, labels) in arrays.items():
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or images.shape[3:] not in ((), (3,))
            or not images.size
        ):
            raise ManifestError(
                f"{file}: {split}_images: expected uint8 (n, height, width) or (n, height, width, 3), "
                f"received {images.dtype} {images.shape}"
            )
        if len(labels) != len(images) or not np.isin(labels, (0, 1)).all():
            raise ManifestError(
                f"{file}: {split}_labels: expected {len(images)} values of 0 or 1, received {len(labels)} "
                f"with values {sorted(set(labels.tolist()))[:5]}"
            )
    return arrays


def _write(arrays: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    rows, names = [], {label: name for name, label in CLASSES.items()}
    for split, (images, labels) in arrays.items():
        for number, (pixels, label) in enumerate(
            zip(bar(images, len(images), f"unpacking {split}"), labels, strict=True)
        ):
            path = f"{split}/{names[int(label)]}/{number:05d}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / path)
            rows.append((path, int(label), f"{split}-{number:05d}", split))
    table = pd.DataFrame(rows, columns=["path", "label", "group_id", "split"])
    table.to_csv(folder / "manifest.csv", index=False)
