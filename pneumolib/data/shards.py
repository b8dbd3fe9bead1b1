"""Pixels of a part that memory does not hold: TFRecord files of raw uint8, written once, read a piece at a time.

Contract: a record's payload is the image's row in the part's table (int64, little-endian), then its pixels, so that all
records of a set are of one length and a place in it is arithmetic. Training reads whole shards through `data.pipeline`;
everything else reads `ShardedPixels`, which answers as the array would and holds no more than it hands out.
"""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pneumolib.data.tfrecord import framed

SHARD_BYTES = 128 * 2**20  # of one file: enough of them to read several at once, few enough to list and copy
PORTION = 256  # images read or decoded ahead, so that memory does not grow with their number
_GOLDEN = (math.sqrt(5) - 1) / 2


class ShardError(ValueError):
    """A shard that cannot be used; the message names file, what was found and expected, and what to do."""


@dataclass(frozen=True)
class ShardedPixels:
    """Stands in for an array uint8 (n, height, width, channels) whose images lie in the TFRecord files of a folder.

    Attributes:
        folder: its name ends with the key of ids, file hashes and parameters, so that it stands for the pixels.
        shape: of the array.
        mixed: whether the shards hold the rows in an order in which each stretch is a fair sample of the table, which
            training needs of a table sorted by class; else in the table's own, so that reading in order is sequential.
    """

    folder: Path
    shape: tuple[int, int, int, int]
    mixed: bool

    dtype, ndim = np.dtype(np.uint8), 4

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def record(self) -> np.dtype:
        """One record as it lies in a file, framing included."""
        return np.dtype([("length", "<u8"), ("length_crc", "<u4"), ("row", "<i8"), ("pixels", "u1", self.shape[1:]),
                         ("crc", "<u4")])  # fmt: skip

    @cached_property
    def n_shards(self) -> int:
        """As many as SHARD_BYTES asks for."""
        return max(1, math.ceil(len(self) * self.record.itemsize / SHARD_BYTES))

    @cached_property
    def per_shard(self) -> int:
        """Images in each file but the last, which may hold fewer."""
        return math.ceil(len(self) / self.n_shards)

    @cached_property
    def step(self) -> int:
        """The image at place p of all shards has row `p * step % n`.

        A step of the golden section, made coprime to n: neighbours in the table, which are of one class and often of one
        child, come to lie far apart, and any run of places is spread evenly over the table.
        """
        near = range(max(1, round(len(self) * _GOLDEN)), 2 * len(self) + 2)
        return next(step for step in near if math.gcd(step, len(self)) == 1) if self.mixed else 1

    def file(self, shard: int, folder: Path | None = None) -> Path:
        """Where a shard lies, or would in another folder."""
        return (folder or self.folder) / f"{shard:05d}-of-{self.n_shards:05d}.tfrecord"

    def rows_of(self, shard: int) -> np.ndarray:
        """Rows of the table in the order of a shard's records, int64."""
        places = np.arange(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self)), dtype=np.int64)
        return places * self.step % len(self)

    def files(self) -> list[Path]:
        """All shards, whose sizes are checked.

        Raises:
            ShardError: one is missing or not as long as it was written.
        """
        files = [self.file(shard) for shard in range(self.n_shards)]
        for shard, file in enumerate(files):
            expected = len(self.rows_of(shard)) * self.record.itemsize
            found = file.stat().st_size if file.is_file() else None
            if found != expected:
                raise self._broken(file, "is missing" if found is None else f"{found:,} bytes, expected {expected:,}")
        return files

    def __getitem__(self, rows) -> np.ndarray:
        """As of an array, for a row, a slice, or an array of rows or of truths; both checksums of each are verified."""
        if isinstance(rows, slice):
            return self._read(np.arange(*rows.indices(len(self))))
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} images")
        found = self._read(np.atleast_1d(rows) % len(self))
        return found if rows.ndim else found[0]

    def mean(self, axis: tuple[int, int, int]) -> np.ndarray:
        """Mean of each image, float64 (n,); `axis` is (1, 2, 3), means over images are not taken here."""
        if tuple(axis) != (1, 2, 3):
            raise ValueError(f"axis {axis}: pixels in shards give the mean of each image alone, axis (1, 2, 3)")
        starts = range(0, len(self), PORTION)
        return np.concatenate([self[start : start + PORTION].mean(axis=axis) for start in starts])

    def _read(self, rows: np.ndarray) -> np.ndarray:
        places = rows * pow(self.step, -1, len(self)) % len(self)
        shards, inside = np.divmod(places, self.per_shard)
        # Places that follow each other in one shard are read at once: in order, that is nearly all of them.
        breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(shards) != 0)) + 1
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for start, end in itertools.pairwise([0, *breaks.tolist(), len(rows)]):
            if end > start:
                pixels[start:end] = self._read_run(int(shards[start]), int(inside[start]), rows[start:end])
        return pixels

    def _read_run(self, shard: int, first: int, rows: np.ndarray) -> np.ndarray:
        """Images that follow each other in a shard, from its record `first` on. A mapped file would stay in memory."""
        file = self.file(shard)
        try:
            found = np.fromfile(file, self.record, len(rows), offset=first * self.record.itemsize)
        except OSError as fault:
            raise self._broken(file, fault.strerror) from None
        if len(found) < len(rows):
            raise self._broken(file, f"ends within or before record {first + len(found) + 1}")
        for place, (record, row) in enumerate(zip(found, rows, strict=True), start=first + 1):
            if record.tobytes() != framed(_payload(int(row), record["pixels"])):
                raise self._broken(file, f"record {place}: not as it was written")
        return found["pixels"]

    def _broken(self, file: Path, what: str) -> ShardError:
        return ShardError(
            f"{file}: {what}; it was cut short or changed since. Delete the folder {self.folder}: the next run makes it "
            f"anew from the images"
        )


def build_shards(shards: ShardedPixels, building: Path, missing: list[int], pixels: Iterator[np.ndarray]) -> None:
    """Write the missing shards, each whole or not there, and give the folder its name when all are there.

    Args:
        building: the folder until then. A build that was killed left its whole shards in it; they are not made again.
        missing: from `missing_shards`.
        pixels: of `rows_of` of each of those, one after the other.
    """
    for shard in missing:
        file = shards.file(shard, building)
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb") as opened:
            for row in shards.rows_of(shard):
                opened.write(framed(_payload(int(row), next(pixels))))
        os.replace(temporary, file)
    os.replace(building, shards.folder)


def missing_shards(shards: ShardedPixels, building: Path) -> list[int]:
    """Numbers of the shards that a build has still to write; makes its folder."""
    building.mkdir(parents=True, exist_ok=True)
    return [shard for shard in range(shards.n_shards) if not shards.file(shard, building).is_file()]


def _payload(row: int, pixels: np.ndarray) -> bytes:
    return row.to_bytes(8, "little") + pixels.tobytes()
