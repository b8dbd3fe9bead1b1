"""TFRecord files: both checksums, pairs of images and paths, and folders that are whole or absent."""

import io
import json
import os

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from pneumolib.data.download import read_records, unpack_pairs
from pneumolib.data.layout import MARKER
from pneumolib.errors import DataError


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def frame(payload: bytes) -> bytes:
    length = len(payload).to_bytes(8, "little")
    return length + masked(length) + payload + masked(payload)


def changed(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


def write_records(path, payloads) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(frame, payloads)))


def jpeg(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write_pair(source, part: str, images: dict[str, bytes]) -> None:
    write_records(source / part / "images.tfrec", images.values())
    write_records(source / part / "paths.tfrec", [path.encode(errors="surrogateescape") for path in images])


TRAIN = {
    "gs://bucket/chest_xray/train/NORMAL/IM-0001-0001.jpeg": jpeg(1),
    "/home of/somebody/val/PNEUMONIA/person2_virus_2.jpeg": jpeg(2),
    "chest_xray\\train\\opacity\\person3_bacteria_3.jpeg": jpeg(3),
    "Normal/IM-0004-0001.jpeg": jpeg(4),
}
TEST = {"test/NORMAL/IM-0005-0001.jpeg": jpeg(5), "test/PNEUMONIA/person6_virus_6.jpeg": jpeg(6)}
UNPACKED = {
    "train/NORMAL/IM-0001-0001.jpeg": jpeg(1),
    "val/PNEUMONIA/person2_virus_2.jpeg": jpeg(2),
    "train/PNEUMONIA/person3_bacteria_3.jpeg": jpeg(3),
    "train/NORMAL/IM-0004-0001.jpeg": jpeg(4),
    **TEST,
}


@pytest.fixture
def source(tmp_path):
    write_pair(tmp_path / "records", "train", TRAIN)
    write_pair(tmp_path / "records", "test", TEST)
    return tmp_path / "records"


def contents(root) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name != MARKER)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


ABSURD = (2**60).to_bytes(8, "little")
FLIPPED = [(0, "its length"), (9, "its length"), (13, "its 3 bytes"), (17, "its 3 bytes")]


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        *((frame(b"def")[:cut], "the file ends within") for cut in (1, 11, 13, 17, 18)),
        *((changed(frame(b"def"), place), f"the checksum of {what} does not fit") for place, what in FLIPPED),
        # Refused before memory is asked for.
        (ABSURD + masked(ABSURD) + b"abc", f"{2**60} bytes; at most 67108864 are allowed"),
    ],
)
def test_a_broken_record_is_named_with_number_and_offset(tmp_path, second, fault):
    file = tmp_path / "x.tfrec"
    file.write_bytes(frame(b"abc") + second)
    records = read_records(file)
    assert next(records) == b"abc"
    with pytest.raises(DataError, match=rf"x\.tfrec: record 2 at byte 19: {fault}"):
        next(records)


# What `tf.io.TFRecordWriter` of TensorFlow 2.21 wrote for an empty record and for b"one".
BY_TENSORFLOW = "000000000000000029039807d8ea82a20300000000000000b099490e6f6e6501405508"


def test_what_tensorflow_writes_is_read(tmp_path):
    (tmp_path / "x.tfrec").write_bytes(bytes.fromhex(BY_TENSORFLOW) + frame(bytes(100_000)))
    assert list(read_records(tmp_path / "x.tfrec")) == [b"", b"one", bytes(100_000)]


def test_every_image_lands_at_its_place_byte_for_byte(source, tmp_path):
    assert unpack_pairs(source, tmp_path / "out") == tmp_path / "out"
    assert contents(tmp_path / "out") == UNPACKED
    write_pair(source, "val", {"NORMAL/IM-0007-0001.jpeg": jpeg(7)})
    assert contents(unpack_pairs(source, tmp_path / "out")) == UNPACKED | {"val/NORMAL/IM-0007-0001.jpeg": jpeg(7)}
    (source / "val/paths.tfrec").unlink()
    with pytest.raises(DataError, match=r"missing: val/paths\.tfrec"):
        unpack_pairs(source, tmp_path / "other")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train/COVID/x.jpeg", r"expected \.\.\./<class>/<name>\.jpeg with a class of normal, pneumonia, opacity"),
        ("train/NORMAL/../x.jpeg", "unsafe name"),
        ("train/NORMAL/C:x\0.jpeg", "unsafe name"),
        ("train/NORMAL//etc/passwd", "expected"),
        ("", "unsafe name"),
        ("train/NORMAL/" + "x" * 300 + ".jpeg", "longer than 255 bytes"),
        ("train/NORMAL/notes.txt", "expected"),
        ("test/NORMAL/x.jpeg", "says test, but is among the records of train/"),
        ("train/Normal/im-0001-0001.JPEG", r"is the place of .*train/paths\.tfrec: record 1 too"),
        ("train/NORMAL/\udcff.jpeg", "can't decode byte"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused_and_nothing_written(source, tmp_path, path, message):
    write_pair(source, "train", TRAIN | {path: jpeg(9)})
    with pytest.raises(DataError, match=f"train/paths.tfrec: record 5: .*{message}"):
        unpack_pairs(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "records"]


@pytest.mark.parametrize(
    ("file", "records", "message"),
    [
        ("train/images", [jpeg(1)] * 3, "record 4: there are not as many images as paths"),
        ("test/images", [jpeg(5), b"\x89PNG...."], r"record 2 \(test/PNEUMONIA/.*\): no JPEG, begins"),
    ],
)
def test_pairs_that_do_not_fit_are_refused_and_an_older_folder_stays(source, tmp_path, file, records, message):
    before = contents(unpack_pairs(source, tmp_path / "out"))
    write_records(source / f"{file}.tfrec", records)
    with pytest.raises(DataError, match=message):
        unpack_pairs(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_what_a_killed_unpacking_left_is_deleted_and_links_and_empty_folders_serve(source, tmp_path):
    (tmp_path / ".elsewhere.filling/train/NORMAL").mkdir(parents=True)
    (tmp_path / ".elsewhere.filling/train/NORMAL/half.jpeg").write_bytes(b"half")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    assert contents(unpack_pairs(source, tmp_path / "out")) == UNPACKED
    assert (tmp_path / "out").is_symlink()
    assert not (tmp_path / ".elsewhere.filling").exists()


@pytest.mark.parametrize("strange", ["mine.txt", "train/NORMAL/mine.jpeg", "more/train/mine.jpeg", "", None])
def test_whatever_belongs_to_others_is_never_overwritten(source, tmp_path, strange):
    out = tmp_path / "out"
    if strange:
        unpack_pairs(source, out)
        (out / strange).parent.mkdir(parents=True, exist_ok=True)
        (out / strange).write_bytes(b"mine")
    elif strange is None:
        out.mkdir()
        (out / MARKER).write_text(json.dumps(["another program's"]), encoding="utf-8")
    else:
        out.write_bytes(b"mine")
    os.utime(source / "test/paths.tfrec", (1, 1))
    before = contents(tmp_path)
    with pytest.raises(DataError, match="holds files that were not made here"):
        unpack_pairs(source, out)
    assert contents(tmp_path) == before | {".out.lock": b""}
