"""What does a network see of one file? `load_image`, for training and for prediction alike.

Contract: pixels are uint8, (height, width, channels), 0 black and 255 white, channels 1 (grey) or 3 (RGB).
Decoding happens once: an `ImageSet` maps pixels from a `.npy` file that all runs of a study share, or reads them from
`data.shards` where they are more than `image.memory_gb`.
"""

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image, ImageOps
from skimage import exposure, img_as_ubyte

from pneumolib.data.decode import Decoded, decode
from pneumolib.data.layout import bar
from pneumolib.data.manifest import Manifest
from pneumolib.data.shards import PORTION, SHARD_BYTES, ShardedPixels, build_shards, missing_shards
from pneumolib.errors import ImageFileError
from pneumolib.params import ImageParams
from pneumolib.project import in_root

_DECODER_VERSION = 2  # raise it when `load_image` changes what it returns: caches of the old one are then ignored
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, pixels and table in the same order.

    Attributes:
        table: one row an image: `image_id, split, label, kind, group_id`.
        pixels: uint8 (n, height, width, channels), mapped from disk, or in shards, which can be indexed in the same way.
    """

    table: pd.DataFrame
    pixels: np.ndarray | ShardedPixels

    def __post_init__(self):
        if len(self.table) != len(self.pixels):
            raise ValueError(f"{len(self.table)} rows but {len(self.pixels)} images")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def identity(self) -> np.ndarray:
        """What a key of the pixels is made from: themselves, or their shards' name, which is a hash of files and parameters."""
        if isinstance(self.pixels, ShardedPixels):
            return np.frombuffer(self.pixels.folder.name.encode(), np.uint8)
        return self.pixels


@dataclass(frozen=True)
class ChangedPixels:
    """Pixels that are changed when they are read, a batch at a time; stands in for `ImageSet.pixels` in a prediction.

    Attributes:
        pixels: uint8 (n, height, width, channels); may be mapped from disk.
        change: from some of them and the place of their first to as many of the same shape and type.
    """

    pixels: np.ndarray
    change: Callable[[np.ndarray, int], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them, as of an array."""
        return self.pixels.shape

    @property
    def dtype(self) -> np.dtype:
        """As of an array."""
        return self.pixels.dtype

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.change(self.pixels[rows], rows.start)


def take(images: ImageSet, image_ids: Sequence[str]) -> ImageSet:
    """Some images, in the order of `image_ids`, copied out of the file that they are mapped from.

    Raises:
        KeyError: an id that is not there.
    """
    rows = pd.Index(images.table.image_id).get_indexer(list(image_ids))
    if (rows < 0).any():
        missing = [name for name, row in zip(image_ids, rows, strict=True) if row < 0]
        raise KeyError(f"{len(missing)} image id(s) are not among the {len(images)} images, such as {missing[0]}")
    return ImageSet(images.table.iloc[rows].reset_index(drop=True), images.pixels[rows])


def load_image(source: Path | bytes, params: ImageParams) -> np.ndarray:
    """Decode one file to uint8 (size_px, size_px, channels): `prepare`, resize with antialiasing, `equalize`.

    JPEG files much larger than `size_px` are decoded at 1/2, 1/4 or 1/8 of their size first, never below twice the
    wanted size: cheaper, and the antialiased resize still decides what is seen.

    Raises:
        ImageFileError: a file that does not decode, with the reason.
        OSError: a file that cannot be read.
    """
    raw = source if isinstance(source, bytes) else source.read_bytes()
    return network_pixels(decode_for(raw, params).image, params)


def decode_for(raw: bytes, params: ImageParams) -> Decoded:
    """A file decoded as large as `network_pixels` needs it; raises as `decode` does."""
    wanted = math.ceil(2 * params.size_px / (1 - 2 * params.crop_border))
    # Saving anew must see the file's own pixels: at a reduced size its traces of compression are gone already.
    return decode(raw, wanted if params.reencode_quality is None else None, grey=params.channels == 1)


def network_pixels(image: Image.Image, params: ImageParams) -> np.ndarray:
    """What a network sees of a decoded image, uint8 (size_px, size_px, channels)."""
    image = prepare(image, params).convert(_MODES[params.channels])
    image = image.resize((params.size_px, params.size_px), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8).reshape(params.size_px, params.size_px, params.channels)
    return equalize(pixels, params)


def prepare(image: Image.Image, params: ImageParams) -> Image.Image:
    """The cures of shortcuts at the image's own size: `reencode_quality`, then `crop_border`, then `fit`.

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
        side, left, top = min(image.size), (image.width - image.height) // 2, (image.height - image.width) // 2
        left, top = max(left, 0), max(top, 0)
        return image.crop((left, top, left + side, top + side))
    return image


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
    grey = pixels[..., 0] if pixels.shape[2] == 1 else np.asarray(Image.fromarray(pixels).convert("L"))
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
        cache_dir: `.cache/pixels` of the project by default. The name there is a hash of ids, file hashes and `params`;
            two processes that build it at once wait for each other; a build that is cut short leaves none, and one
            of shards goes on from its last whole shard.
    Raises:
        KeyError: an image of the split that the manifest does not hold.
        ShardError: a shard that was cut short or deleted since.
    """
    rows = split[split.split == part].sort_values("image_id", ignore_index=True)
    if missing := sorted(set(rows.image_id) - set(manifest.table.image_id)):
        raise KeyError(f"{len(missing)} image(s) of the split are not in the manifest, such as {missing[0]}")
    files = rows[["image_id"]].merge(manifest.table[["image_id", "path", "sha256"]], on="image_id", validate="1:1")
    folder = cache_dir or in_root(".cache/pixels")
    shape = (len(files), params.size_px, params.size_px, params.channels)
    if math.prod(shape) > 2e9:
        key = _cache_key(files, params, "shards", SHARD_BYTES)
        shards = ShardedPixels(folder / f"{part}-{key}", shape, mixed=part == "train")
        _once(shards.folder, lambda: _build_shards(shards, manifest.root, files.path, params))
        shards.files()  # a broken one is to be found now, not in the middle of a training
        return ImageSet(rows, shards)
    cache = folder / f"{part}-{_cache_key(files, params)}.npy"
    _once(cache, lambda: _build(cache, manifest.root, files.path, params))
    return ImageSet(rows, np.load(cache, mmap_mode="r"))


def _once(cache: Path, build: Callable[[], None]) -> None:
    """Build what is not there; of several processes one does, and the others wait."""
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cache}.lock"):
            if not cache.exists():  # another process may have built it while this one waited
                build()


def _cache_key(files: pd.DataFrame, params: ImageParams, *form: str | int) -> str:
    described = [_DECODER_VERSION, params.model_dump(), files.image_id.tolist(), files.sha256.tolist(), *form]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _build(cache: Path, root: Path, names: pd.Series, params: ImageParams) -> None:
    """Decode into a file beside the cache, and rename it when whole.

    Written in order and in portions: a mapped file would keep every page it wrote in memory.
    """
    for left in cache.parent.glob(f"{cache.stem}.*.tmp"):
        left.unlink()  # by a build that was killed; the caller holds the lock
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    shape = (len(names), params.size_px, params.size_px, params.channels)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    try:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for pixels in _decoded((root / name for name in names), len(names), params):
                file.write(pixels.tobytes())
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)


def _build_shards(shards: ShardedPixels, root: Path, names: pd.Series, params: ImageParams) -> None:
    """Decode what a killed build has not left in whole shards; the caller holds the lock."""
    building = shards.folder.with_name(f"{shards.folder.name}.building")
    missing = missing_shards(shards, building)
    todo = (root / names[row] for shard in missing for row in shards.rows_of(shard))
    n_todo = sum(len(shards.rows_of(shard)) for shard in missing)
    build_shards(shards, building, missing, _decoded(todo, n_todo, params))


def _decoded(paths: Iterable[Path], total: int, params: ImageParams) -> Iterator[np.ndarray]:
    """Pixels of each file in turn, a thread a core, no more than a portion ahead."""
    paths = iter(paths)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        portions = iter(lambda: list(itertools.islice(paths, PORTION)), [])
        decoded = (pixels for portion in portions for pixels in pool.map(_loader(params), portion))
        yield from bar(decoded, total, "decoding images")


def _loader(params: ImageParams) -> Callable[[Path], np.ndarray]:
    def load(path: Path) -> np.ndarray:
        try:
            return load_image(path, params)
        except OSError as fault:
            raise type(fault)(f"{path}: {fault}") from None

    return load
