"""TFRecord files without TensorFlow, and the pairs of them that the Keras example of these radiographs publishes.

A pair is `<part>/images.tfrec`, each record the bytes of a JPEG, and `<part>/paths.tfrec`, each record that file's
path as text. Part is train, test or val. Both checksums of every record are verified.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from pneumolib.data.layout import CLASS_NAMES, SPLITS, bar, build, is_image, safe_parts
from pneumolib.errors import DataError

MAX_RECORD_BYTES = 64 * 2**20


def read_records(path: Path) -> Iterator[bytes]:
    """The payloads of a TFRecord file, one in memory at a time.

    The framing is: length (uint64, little-endian), masked CRC32C of those 8 bytes, payload, masked CRC32C of it.

    Raises:
        DataError: a file that ends within a record, a checksum that does not fit, or a record above MAX_RECORD_BYTES,
            which is refused before memory is asked for. The message names record (from 1) and byte offset.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            where = f"{path}: record {number} at byte {file.tell()}"
            head = file.read(12)
            if not head:
                return
            length = int.from_bytes(head[:8], "little")
            _require(len(head) == 12, f"{where}: the file ends within the record's head")
            _require(_masked_crc(head[:8]) == head[8:], f"{where}: the checksum of its length does not fit")
            _require(length <= MAX_RECORD_BYTES, f"{where}: {length} bytes; at most {MAX_RECORD_BYTES} are allowed")
            payload, check = file.read(length), file.read(4)
            _require(len(check) == 4, f"{where}: the file ends within its {length} bytes")
            _require(_masked_crc(payload) == check, f"{where}: the checksum of its {length} bytes does not fit")
            yield payload


def _require(holds: bool, else_said: str) -> None:
    if not holds:
        raise DataError(f"{else_said}. Download the file again; a TFRecord file is needed, and no compressed one")


def _masked_crc(data: bytes) -> bytes:
    """CRC32C, rotated and moved by a constant, so that a CRC over data that holds CRCs stays meaningful."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def unpack_pairs(source: Path, target: Path) -> Path:
    """Write the images of `source`'s pairs into `target` in the archive's layout, and return `target`.

    A target that was unpacked from the same files (by size and time) is returned at once. Raises DataError as
    `write_pairs` does, and where `target` holds what was not unpacked here.
    """
    files = {f"{part}/{file.name}": file.stat() for part, pair in _find_pairs(source).items() for file in pair}
    recipe = {"tfrecord": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()}}
    build(target, recipe, lambda folder: write_pairs(source, folder))
    return target


def _find_pairs(source: Path) -> dict[str, tuple[Path, Path]]:
    """Part to (images, paths) below `source`. Raises DataError where a file of train, test or a begun val lacks."""
    pairs = {part: (source / part / "images.tfrec", source / part / "paths.tfrec") for part in SPLITS}
    if not any(file.exists() for file in pairs["val"]):
        del pairs["val"]
    if missing := [str(file.relative_to(source)) for pair in pairs.values() for file in pair if not file.is_file()]:
        raise DataError(f"{source}: looked for pairs of images.tfrec and paths.tfrec; missing: {', '.join(missing)}")
    return pairs


def write_pairs(source: Path, folder: Path) -> None:
    """Write every image to `folder`/<split>/<class>/<name>, byte for byte.

    The split is the path's third-to-last part where that is train, val or test, else the part of the pair.

    Raises:
        DataError: as `read_records` does; a missing file, a path that is unsafe, of no known class or no image, a test
            image in another part or the other way round, two images for one place, a record that is no JPEG, or a
            pair of unequal length.
    """
    seen = {}
    for part, (images, paths) in _find_pairs(source).items():
        records = itertools.zip_longest(read_records(images), read_records(paths))
        for number, (image, path) in enumerate(bar(records, None, f"unpacking {part}"), start=1):
            where = f"{paths}: record {number}"
            if image is None or path is None:
                raise DataError(f"{where}: there are not as many images as paths; download both files again")
            try:
                place = _place(path.decode("utf-8"), part)
            except (DataError, UnicodeDecodeError) as fault:
                raise DataError(f"{where}: {fault}") from None
            if other := seen.get(place.casefold()):
                raise DataError(f"{where}: {place} is the place of {other} too; one image a place is allowed")
            if not image.startswith(b"\xff\xd8\xff"):
                raise DataError(f"{images}: record {number} ({place}): no JPEG, begins with {image[:8]!r}")
            seen[place.casefold()] = where
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(image)


def _place(path: str, part: str) -> str:
    """`<split>/<class>/<name>` of a record's path; where its writer's disk was does not matter."""
    *_, said, folder, name = ["", "", *safe_parts(re.sub(r"^(\w+:)?/+", "", path))]
    if folder.lower() not in CLASS_NAMES or not is_image(name):
        raise DataError(f"{path!r}: expected .../<class>/<name>.jpeg with a class of {', '.join(CLASS_NAMES)}")
    split = said.lower() if said.lower() in SPLITS else part
    if (split == "test") != (part == "test"):
        raise DataError(f"{path!r}: says {split}, but is among the records of {part}/")
    return f"{split}/{CLASS_NAMES[folder.lower()]}/{name}"
