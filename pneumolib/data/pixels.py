"""What does a network see of one file? `load_image`, for training and for prediction alike.

Contract: pixels are uint8, (height, width, channels), 0 black and 255 white, channels 1 (grey) or 3 (RGB).
Decoding happens once: the pixels of a part of the split lie in one `.npy` file that all runs of a study map into memory.
The system loads and drops its pages as needed, so a part may be larger than memory.
"""

import io
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image, ImageOps
from skimage import exposure, img_as_ubyte

from pneumolib.data.decode import LIMITS, Decoded, decode, read_file
from pneumolib.data.layout import LABEL_NAMES, bar
from pneumolib.data.manifest import Manifest
from pneumolib.errors import ImageFileError
from pneumolib.params import DataParams, ImageParams
from pneumolib.project import in_root, whole_file
from pneumolib.provenance import text_digest

_DECODER_VERSION = 4  # raise it when `load_image` changes what it returns: caches of the old one are then ignored
_AHEAD = 256  # images decoded before they are written
_HEAD_BYTES = 128  # of a `.npy` file


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, pixels and table in the same order.

    Attributes:
        table: one row an image: `image_id, split, label, kind, group_id`.
        pixels: uint8 (n, height, width, channels); may be mapped from disk.
        key: a hash of all that decides the pixels, where they are a whole cache file; else empty.
    """

    table: pd.DataFrame
    pixels: np.ndarray
    key: str = ""

    def __len__(self) -> int:
        return len(self.table)


class ChangedPixels:
    """Pixels that are changed when they are read, a batch at a time; stands in for `ImageSet.pixels` in a prediction.

    Args:
        pixels: uint8 (n, height, width, channels); may be mapped from disk.
        change: from some of them and the place of their first to as many of the same shape and type.
    """

    def __init__(self, pixels: np.ndarray, change: Callable[[np.ndarray, int], np.ndarray]):
        self.pixels, self.change, self.shape, self.dtype = pixels, change, pixels.shape, pixels.dtype

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.change(self.pixels[rows], rows.start)


def subset(images: ImageSet, image_ids: Sequence[str]) -> ImageSet:
    """Some images, in the order of `image_ids`, copied out of the file that they are mapped from.

    Raises:
        KeyError: an id that is not there.
    """
    rows = _rows_of(images.table, image_ids)
    return ImageSet(images.table.iloc[rows].reset_index(drop=True), images.pixels[rows])


def _rows_of(table: pd.DataFrame, image_ids: Sequence[str]) -> np.ndarray:
    return pd.Series(np.arange(len(table)), table.image_id).loc[list(image_ids)].to_numpy()


def load_image(source: Path | bytes, params: ImageParams, limits: DataParams = LIMITS) -> np.ndarray:
    """Decode one file to uint8 (size_px, size_px, channels): `prepare`, resize with antialiasing, `equalize`.

    JPEG files much larger than `size_px` are decoded at 1/2, 1/4 or 1/8 of their size first, never below twice the
    wanted size: cheaper, and the antialiased resize still decides what is seen. `limits` says how large a file may be.

    Raises:
        ImageFileError: a file that does not decode, with the reason.
        OSError: a file that cannot be read.
    """
    raw = source if isinstance(source, bytes) else read_file(source, limits)
    return network_pixels(decode_for(raw, params, limits).image, params)


def decode_for(raw: bytes, params: ImageParams, limits: DataParams = LIMITS) -> Decoded:
    """A file decoded as large as `network_pixels` needs it; raises as `decode` does."""
    wanted = math.ceil(2 * params.size_px / (1 - 2 * params.crop_border))
    # Saving anew must see the file's own pixels: at a reduced size its traces of compression are gone already.
    return decode(raw, wanted if params.reencode_quality is None else None, grey=params.channels == 1, limits=limits)


def network_pixels(image: Image.Image, params: ImageParams) -> np.ndarray:
    """What a network sees of a decoded image, uint8 (size_px, size_px, channels)."""
    image = prepare(image, params).convert("L" if params.channels == 1 else "RGB")
    image = image.resize((params.size_px, params.size_px), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8).reshape(params.size_px, params.size_px, params.channels)
    return equalize(pixels, params)


def prepare(image: Image.Image, params: ImageParams) -> Image.Image:
    """The mitigations of shortcuts at the image's own size: `reencode_quality`, then `crop_border`, then `fit`.

    `stretch` leaves the shape to the resize, which distorts it; `pad` adds black bars, which keep proportions and show
    the shape; `crop` takes the largest square of the middle, which loses the ends of the longer side.
    """
    if params.reencode_quality is not None:
        image = Image.open(io.BytesIO(as_jpeg(image, params.reencode_quality)))
    width, height = image.size
    if params.crop_border:
        dx, dy = round(width * params.crop_border), round(height * params.crop_border)
        image = image.crop((dx, dy, width - dx, height - dy))
    if params.fit == "pad":
        side = max(image.size)
        if side**2 > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ImageFileError(f"{width} x {height} pixels: too many once the longer side has made a square of it")
        return ImageOps.pad(image, (side, side), color=0)
    if params.fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))
    return image


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Pillow's image, of mode L or RGB, of pixels (height, width, channels)."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """The image saved as JPEG, with Pillow's tables for `quality` (1 to 95)."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def equalize(pixels: np.ndarray, params: ImageParams) -> np.ndarray:
    """Spread the grey values of one image, uint8 (height, width, channels) in and out.

    `hist` makes the image's cumulative histogram straight; `clahe` does so within tiles, no grey value steeper than
    `clahe_clip_limit` allows (Zuiderveld, Graphics Gems IV, 1994). Colour becomes grey first, in all channels.
    """
    if params.equalize == "none":
        return pixels
    grey = np.asarray(picture_of(pixels).convert("L"))
    if params.equalize == "hist":
        spread = exposure.equalize_hist(grey)
    else:
        tile = max(1, grey.shape[0] // params.clahe_tiles), max(1, grey.shape[1] // params.clahe_tiles)
        spread = exposure.equalize_adapthist(grey, kernel_size=tile, clip_limit=params.clahe_clip_limit)
    return np.repeat(img_as_ubyte(spread)[..., None], pixels.shape[2], axis=2)


def read_images(
    manifest: Manifest, split: pd.DataFrame, part: str, params: ImageParams, cache_dir: Path | None = None
) -> ImageSet:
    """The pixels of one part of the split, decoded on the first call and mapped from the cache afterwards.

    Args:
        manifest: where the files are.
        split: from `split_manifest`.
        part: `train`, `val` or `test`.
        params: size and channels.
        cache_dir: `.cache/pixels` of the project by default. A file's name there is a hash of ids, file hashes and
            `params`. It is whole or absent, and one that was cut short since is made anew; of two processes that need
            it at once one builds it, and the other waits.
    Raises:
        KeyError: an image of the split that the manifest does not hold.
    """
    rows = split[split.split == part].sort_values("image_id", ignore_index=True)
    files = manifest.table.iloc[_rows_of(manifest.table, rows.image_id)]
    described = [_DECODER_VERSION, params.model_dump(), rows.image_id.tolist(), files.sha256.tolist()]
    key = text_digest(json.dumps(described))
    cache = (cache_dir or in_root(".cache/pixels")) / f"{part}-{key}.npy"
    shape = (len(files), params.size_px, params.size_px, params.channels)
    if (pixels := _mapped(cache, shape)) is None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cache}.lock"):
            if _mapped(cache, shape) is None:  # another process may have built it while this one waited
                _build(cache, shape, [manifest.root / path for path in files.path], params, manifest.limits)
        pixels = _mapped(cache, shape)
    return ImageSet(rows, pixels, key)


def _mapped(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A cache file's pixels, or None where it is absent or of another length; its name tells their shape."""
    if not cache.is_file():
        return None
    if cache.stat().st_size == _HEAD_BYTES + math.prod(shape):
        return np.load(cache, mmap_mode="r")
    print(f"{cache} is damaged; it is made anew", flush=True)
    return None


def _build(cache: Path, shape: tuple[int, ...], paths: list[Path], params: ImageParams, limits: DataParams) -> None:
    """Decode into a file beside the cache, a thread a core, and rename it when whole; the caller holds the lock.

    Written in order and in portions: a mapped file would keep every page it wrote in memory.
    """

    def load(path: Path) -> bytes:
        try:
            return load_image(path, params, limits).tobytes()
        except (ImageFileError, OSError) as fault:
            raise type(fault)(f"{path}: {fault}") from None

    cores = os.cpu_count()
    with whole_file(cache, "writing") as temporary, temporary.open("wb") as file, ThreadPoolExecutor(cores) as pool:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        portions = (pool.map(load, paths[start : start + _AHEAD]) for start in range(0, len(paths), _AHEAD))
        for pixels in bar(itertools.chain.from_iterable(portions), len(paths), "decoding images"):
            file.write(pixels)


def histograms_of(sets: dict[str, ImageSet]) -> pd.DataFrame:
    """Pooled grey values by split and class: one row each, `split, label, histogram` (256 shares that sum to 1)."""
    found = []
    for split, images in sets.items():
        for label, rows in images.table.reset_index(drop=True).groupby("label"):
            # Image by image: `bincount` makes eight bytes of each pixel.
            counts = sum(np.bincount(images.pixels[row].reshape(-1), minlength=256) for row in rows.index)
            found.append({"split": split, "label": label, "histogram": counts / counts.sum()})
    return pd.DataFrame(found)


def grey_distances(histograms: pd.DataFrame) -> dict[str, float]:
    """Wasserstein distances between pooled grey values, in grey values (0 to 255): how far a pixel moves on average.

    Args:
        histograms: of `histograms_of`, splits train and test.
    Returns:
        `classes` (normal against pneumonia, in training), `shift_normal` and `shift_pneumonia` (training against test).
    Raises:
        KeyError: a class or split that is missing.
    """
    from scipy.stats import wasserstein_distance  # a second that a prediction need not wait for

    shares, grey = histograms.set_index(["split", "label"]).histogram, np.arange(256)

    def distance(one: tuple[str, int], other: tuple[str, int]) -> float:
        return float(wasserstein_distance(grey, grey, shares[one], shares[other]))

    shifts = {f"shift_{name}": distance(("train", label), ("test", label)) for label, name in LABEL_NAMES.items()}
    return {"classes": distance(("train", 0), ("train", 1)), **shifts}
