"""TFRecord files without TensorFlow, and the pairs of them that the Keras example of these radiographs publishes.

A pair is `<part>/images.tfrec`, each record the bytes of a JPEG, and `<part>/paths.tfrec`, each record that file's
path as text; part is train, test or val. Both checksums of every record are verified.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from pneumolib.data.archive import ArchiveError, build, is_image, refuse_twins, safe_parts
from pneumolib.data.progress import bar
from pneumolib.data.sources import CLASS_NAMES, SPLITS

MAX_RECORD_BYTES = 64 * 2**20


class TFRecordError(ValueError):
    """A TFRecord file that cannot be used; the message names file, record (from 1), byte offset and what was wrong."""


def read_records(path: Path) -> Iterator[bytes]:
    """The payloads of a TFRecord file, one in memory at a time.

    The framing is: length (uint64, little-endian), masked CRC32C of those 8 bytes, payload, masked CRC32C of it.

    Raises:
        TFRecordError: a file that ends within a record, a checksum that does not fit, or a record above
            MAX_RECORD_BYTES, which is refused before memory is asked for.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            where = f"{path}: record {number} at byte {file.tell()}"
            head = file.read(12)
            if not head:
                return
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12:
                raise TFRecordError(f"{where}: the file ends within the record's head; fetch it again")
            if _masked_crc(head[:8]) != head[8:]:
                hint = "; is it a TFRecord file, and not a compressed one?" if number == 1 else "; fetch the file again"
                raise TFRecordError(f"{where}: the checksum of its length does not fit{hint}")
            if length > MAX_RECORD_BYTES:
                raise TFRecordError(f"{where}: {length} bytes long; at most {MAX_RECORD_BYTES} are allowed")
            payload, check = file.read(length), file.read(4)
            if len(payload) < length or len(check) < 4:
                raise TFRecordError(f"{where}: the file ends within its {length} bytes; fetch it again")
            if _masked_crc(payload) != check:
                raise TFRecordError(f"{where}: the checksum of its {length} bytes does not fit; fetch the file again")
            yield payload


def framed(payload: bytes) -> bytes:
    """A payload as a record, as `read_records` and TensorFlow read it."""
    length = len(payload).to_bytes(8, "little")
    return length + _masked_crc(length) + payload + _masked_crc(payload)


def _masked_crc(data: bytes) -> bytes:
    """CRC32C, rotated and moved by a constant, so that a CRC over data that holds CRCs stays meaningful."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def unpack_pairs(source: Path, target: Path) -> Path:
    """Write the images of `source`'s pairs into `target` in the archive's layout, and return `target`.

    A target that was unpacked from the same files (by size and time) is returned at once.

    Raises:
        TFRecordError: as `write_pairs` does, or `target` holds what was not unpacked here.
    """
    stamps = {f"{part}/{file.name}": file.stat() for part, pair in find_pairs(source).items() for file in pair}
    recipe = {"tfrecord": {name: [stamp.st_size, stamp.st_mtime_ns] for name, stamp in stamps.items()}}
    try:
        build(target, recipe, lambda folder: write_pairs(source, folder))
    except FileExistsError as fault:
        raise TFRecordError(f"{fault}. Move them away, or name another folder to unpack into") from None
    return target


def find_pairs(source: Path) -> dict[str, tuple[Path, Path]]:
    """Part to (images, paths) below `source`. Raises TFRecordError where a file of train, test or a begun val lacks."""
    pairs = {part: (source / part / "images.tfrec", source / part / "paths.tfrec") for part in SPLITS}
    if not any(file.exists() for file in pairs["val"]):
        del pairs["val"]
    if missing := [str(file.relative_to(source)) for pair in pairs.values() for file in pair if not file.is_file()]:
        raise TFRecordError(
            f"{source}: looked for pairs of images.tfrec and paths.tfrec; missing: {', '.join(missing)}"
        )
    return pairs


def write_pairs(source: Path, folder: Path) -> None:
    """Write every image to `folder`/<split>/<class>/<name>, byte for byte.

    The split is the path's third-to-last part where that is train, val or test, else the part that the pair lies in.

    Raises:
        TFRecordError: as `read_records` and `find_pairs` do; a path that is unsafe, of no known class or no image, a
            test image in another part or the other way round, two images for one place, a record that is no
            JPEG, or a pair of unequal length.
    """
    pairs = find_pairs(source)
    places = {part: _read_places(paths, part) for part, (_, paths) in pairs.items()}
    origins = [
        (f"{pairs[part][1]}: record {number}", place)
        for part in pairs
        for number, place in enumerate(places[part], start=1)
    ]
    try:
        refuse_twins(origins)
    except ArchiveError as fault:
        raise TFRecordError(str(fault)) from None
    for part, (images, _) in pairs.items():
        _write_images(images, places[part], folder)


def _read_places(file: Path, part: str) -> list[str]:
    places = []
    for number, record in enumerate(read_records(file), start=1):
        try:
            places.append(_place(record.decode("utf-8"), part))
        except (ArchiveError, UnicodeDecodeError) as fault:
            raise TFRecordError(f"{file}: record {number}: {fault}") from None
    return places


def _place(path: str, part: str) -> str:
    """`<split>/<class>/<name>` of a record's path; where its writer's disk was does not matter."""
    *_, said, folder, name = ["", "", *safe_parts(re.sub(r"^(\w+:)?/+", "", path))]
    if folder.lower() not in CLASS_NAMES:
        raise ArchiveError(
            f"{path!r}: the second-to-last part, {folder!r}, is no class; allowed: {', '.join(CLASS_NAMES)}"
        )
    if not is_image(name):
        raise ArchiveError(f"{path!r}: the last part, {name!r}, is no image's name; *.jpeg or *.jpg was expected")
    split = said.lower() if said.lower() in SPLITS else part
    if (split == "test") != (part == "test"):
        raise ArchiveError(f"{path!r}: says {split}, but lies among the records of {part}/")
    return f"{split}/{CLASS_NAMES[folder.lower()]}/{name}"


def _write_images(file: Path, places: list[str], folder: Path) -> None:
    number = 0
    for number, image in enumerate(bar(read_records(file), len(places), f"unpacking {file.parent.name}"), start=1):
        if number > len(places):
            continue  # counted to the end, for the message below
        if not image.startswith(b"\xff\xd8\xff"):
            raise TFRecordError(f"{file}: record {number} ({places[number - 1]}): no JPEG, begins with {image[:8]!r}")
        target = folder / places[number - 1]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image)
    if number != len(places):
        raise TFRecordError(f"{file}: {number} images, but paths.tfrec beside it names {len(places)}; fetch both again")
