"""What does a network see of one file? `load_image`, for training and for prediction alike.

Contract: pixels are uint8, (height, width, channels), 0 black and 255 white, channels 1 (grey) or 3 (RGB).
Decoding happens once: an `ImageSet` maps pixels from a `.npy` file that all runs of a study share.
"""

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image

from pneumolib.data.manifest import Manifest
from pneumolib.data.progress import bar
from pneumolib.params import ImageParams, in_root

_DECODER_VERSION = 1  # raise it when `load_image` changes what it returns: caches of the old one are then ignored
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, pixels and table in the same order.

    Attributes:
        table: one row an image: `image_id, split, label, kind, group_id`.
        pixels: uint8 (n, height, width, channels), mapped from disk.
    """

    table: pd.DataFrame
    pixels: np.ndarray

    def __post_init__(self):
        if len(self.table) != len(self.pixels):
            raise ValueError(f"{len(self.table)} rows but {len(self.pixels)} images")

    def __len__(self) -> int:
        return len(self.table)


def load_image(source: Path | bytes, params: ImageParams) -> np.ndarray:
    """Decode one file to uint8 (size_px, size_px, channels), stretched to a square with antialiasing.

    JPEG files much larger than `size_px` are decoded at 1/2, 1/4 or 1/8 of their size first, never below twice the
    wanted size: cheaper, and the antialiased resize still decides what is seen.

    Raises:
        OSError: what Pillow says of a file that does not decode.
    """
    mode, size = _MODES[params.channels], (params.size_px, params.size_px)
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.draft(mode, (2 * params.size_px, 2 * params.size_px))
        image.load()
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            image = _to_8_bit(image)
        pixels = image.convert(mode).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(pixels, dtype=np.uint8).reshape(params.size_px, params.size_px, params.channels)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey by its top byte; Pillow's own conversion would cut everything above 255 to white."""
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def read_images(
    manifest: Manifest, split: pd.DataFrame, part: str, params: ImageParams, cache_dir: Path | None = None
) -> ImageSet:
    """The pixels of one part of the split, decoded on the first call and mapped from the cache afterwards.

    Args:
        manifest: where the files are.
        split: from `split_manifest`.
        part: `train`, `val` or `test`.
        params: size and channels.
        cache_dir: `.cache/pixels` of the project by default. The file's name is a hash of ids, file hashes and
            `params`; two processes that build it at once wait for each other; a build that is cut short leaves none.
    Raises:
        KeyError: an image of the split that the manifest does not hold.
    """
    rows = split[split.split == part].sort_values("image_id", ignore_index=True)
    if missing := sorted(set(rows.image_id) - set(manifest.table.image_id)):
        raise KeyError(f"{len(missing)} image(s) of the split are not in the manifest, such as {missing[0]}")
    files = rows[["image_id"]].merge(manifest.table[["image_id", "path", "sha256"]], on="image_id", validate="1:1")
    folder = cache_dir or in_root(".cache/pixels")
    cache = folder / f"{part}-{_cache_key(files, params)}.npy"
    if not cache.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cache}.lock"):
            if not cache.is_file():  # another process may have built it while this one waited
                _build(cache, [manifest.root / path for path in files.path], params)
    return ImageSet(rows, np.load(cache, mmap_mode="r"))


def _cache_key(files: pd.DataFrame, params: ImageParams) -> str:
    described = [_DECODER_VERSION, params.model_dump(), files.image_id.tolist(), files.sha256.tolist()]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _build(cache: Path, paths: list[Path], params: ImageParams) -> None:
    """Decode into a file beside the cache, a thread a core, and rename it when whole."""
    for left in cache.parent.glob(f"{cache.stem}.*.tmp"):
        left.unlink()  # by a build that was killed; the caller holds the lock
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    shape = (len(paths), params.size_px, params.size_px, params.channels)
    pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)

    def decode(position: int) -> None:
        pixels[position] = load_image(paths[position], params)

    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for _ in bar(pool.map(decode, range(len(paths))), len(paths), "decoding images"):
                pass
        pixels.flush()
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)
