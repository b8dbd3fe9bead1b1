"""TFRecord files: both checksums, pairs of images and paths, and folders that are whole or absent."""

import io
import json
import os

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from pneumolib.data import tfrecord
from pneumolib.data.layout import MARKER
from pneumolib.data.tfrecord import read_records, unpack_pairs
from pneumolib.errors import DataError


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def frame(payload: bytes) -> bytes:
    length = len(payload).to_bytes(8, "little")
    return length + masked(length) + payload + masked(payload)


def write_records(path, payloads) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(frame, payloads)))


def jpeg(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write_pair(source, part: str, images: dict[str, bytes]) -> None:
    write_records(source / part / "images.tfrec", images.values())
    write_records(source / part / "paths.tfrec", [path.encode() for path in images])


TRAIN = {
    "gs://bucket/chest_xray/train/NORMAL/IM-0001-0001.jpeg": jpeg(1),
    "/home of/somebody/val/PNEUMONIA/person2_virus_2.jpeg": jpeg(2),
    "chest_xray\\train\\opacity\\person3_bacteria_3.jpeg": jpeg(3),
    "Normal/IM-0004-0001.jpeg": jpeg(4),
}
TEST = {"test/NORMAL/IM-0005-0001.jpeg": jpeg(5), "test/PNEUMONIA/person6_virus_6.jpeg": jpeg(6)}


@pytest.fixture
def source(tmp_path):
    write_pair(tmp_path / "records", "train", TRAIN)
    write_pair(tmp_path / "records", "test", TEST)
    return tmp_path / "records"


def contents(root) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name != MARKER)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def test_records_come_back_in_order(tmp_path):
    write_records(tmp_path / "x.tfrec", [b"", b"one", bytes(100_000)])
    assert list(read_records(tmp_path / "x.tfrec")) == [b"", b"one", bytes(100_000)]


@pytest.mark.parametrize("cut", [1, 11, 13, 17, 18])
def test_a_cut_file_is_named_with_record_and_offset(tmp_path, cut):
    file = tmp_path / "x.tfrec"
    file.write_bytes(frame(b"abc") + frame(b"def")[:cut])
    records = read_records(file)
    assert next(records) == b"abc"
    with pytest.raises(DataError, match=r"x\.tfrec: record 2 at byte 19: the file ends within"):
        next(records)


@pytest.mark.parametrize(("position", "what"), [(0, "length"), (9, "length"), (13, "3 bytes"), (17, "3 bytes")])
def test_a_changed_byte_is_found(tmp_path, position, what):
    raw = bytearray(frame(b"abc"))
    raw[position] ^= 1
    (tmp_path / "x.tfrec").write_bytes(raw)
    with pytest.raises(DataError, match=f"record 1 at byte 0: the checksum of its {what} does not fit"):
        list(read_records(tmp_path / "x.tfrec"))


def test_an_absurd_length_is_refused_before_memory_is_asked_for(tmp_path):
    length = (2**60).to_bytes(8, "little")
    (tmp_path / "x.tfrec").write_bytes(length + masked(length) + b"abc")
    with pytest.raises(DataError, match=f"{2**60} bytes long; at most 67108864 are allowed"):
        next(read_records(tmp_path / "x.tfrec"))


def test_what_tensorflow_writes_is_read(tmp_path):
    import tensorflow as tf

    for part, images in (("train", TRAIN), ("test", TEST)):
        (tmp_path / "tf" / part).mkdir(parents=True)
        for name, payloads in (("images", images.values()), ("paths", images)):
            with tf.io.TFRecordWriter(str(tmp_path / f"tf/{part}/{name}.tfrec")) as writer:
                for payload in payloads:
                    writer.write(payload)
    unpack_pairs(tmp_path / "tf", tmp_path / "out")
    assert sorted(contents(tmp_path / "out").values()) == sorted([*TRAIN.values(), *TEST.values()])


def test_every_image_lands_at_its_place_byte_for_byte(source, tmp_path):
    assert unpack_pairs(source, tmp_path / "out") == tmp_path / "out"
    assert contents(tmp_path / "out") == {
        "train/NORMAL/IM-0001-0001.jpeg": jpeg(1),
        "val/PNEUMONIA/person2_virus_2.jpeg": jpeg(2),
        "train/PNEUMONIA/person3_bacteria_3.jpeg": jpeg(3),
        "train/NORMAL/IM-0004-0001.jpeg": jpeg(4),
        "test/NORMAL/IM-0005-0001.jpeg": jpeg(5),
        "test/PNEUMONIA/person6_virus_6.jpeg": jpeg(6),
    }


def test_a_val_pair_is_read_where_there_is_one(source, tmp_path):
    write_pair(source, "val", {"NORMAL/IM-0007-0001.jpeg": jpeg(7)})
    assert "val/NORMAL/IM-0007-0001.jpeg" in contents(unpack_pairs(source, tmp_path / "out"))
    (source / "val/paths.tfrec").unlink()
    with pytest.raises(DataError, match=r"missing: val/paths\.tfrec"):
        unpack_pairs(source, tmp_path / "other")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train/COVID/x.jpeg", "'COVID', is no class; allowed: normal, pneumonia, opacity"),
        ("train/NORMAL/../x.jpeg", "unsafe name"),
        ("../train/NORMAL/x.jpeg", "unsafe name"),
        ("train/NORMAL/C:x.jpeg", "unsafe name"),
        ("train/NORMAL/x\0.jpeg", "unsafe name"),
        ("train/NORMAL/", "'', is no image's name"),
        ("train/NORMAL/..", "unsafe name"),
        ("train/NORMAL//etc/passwd", "'etc', is no class"),
        ("x.jpeg", "'', is no class"),
        ("", "unsafe name"),
        ("train/NORMAL/" + "x" * 300 + ".jpeg", "longer than 255 bytes"),
        ("train/NORMAL/notes.txt", "'notes.txt', is no image's name"),
        ("test/NORMAL/x.jpeg", "says test, but lies among the records of train/"),
        ("train/Normal/im-0001-0001.JPEG", "as .*record 1 would; one file a place"),
        ("train/NORMAL/\udcff.jpeg", "can't decode byte"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused_and_nothing_written(source, tmp_path, path, message):
    images = TRAIN | {path: jpeg(9)}
    write_records(source / "train/images.tfrec", images.values())
    write_records(source / "train/paths.tfrec", [name.encode(errors="surrogateescape") for name in images])
    with pytest.raises(DataError, match=message) as fault:
        unpack_pairs(source, tmp_path / "out")
    assert "train/paths.tfrec: record 5" in str(fault.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.filling").exists()


def test_a_test_record_that_says_train_is_refused(source, tmp_path):
    write_pair(source, "test", {"train/NORMAL/x.jpeg": jpeg(1)})
    with pytest.raises(DataError, match="says train, but lies among the records of test/"):
        unpack_pairs(source, tmp_path / "out")


@pytest.mark.parametrize("n_images", [3, 6])
def test_a_pair_of_unequal_length_is_refused(source, tmp_path, n_images):
    write_records(source / "train/images.tfrec", [jpeg(1)] * n_images)
    with pytest.raises(DataError, match=f"{n_images} images, but paths.tfrec beside it names 4"):
        unpack_pairs(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_no_jpeg_are_refused(source, tmp_path):
    write_records(source / "test/images.tfrec", [jpeg(5), b"\x89PNG...."])
    with pytest.raises(DataError, match=r"record 2 \(test/PNEUMONIA/person6_virus_6.jpeg\): no JPEG, begins with"):
        unpack_pairs(source, tmp_path / "out")


def test_whole_is_returned_at_once_and_changed_sources_unpack_again(source, tmp_path, monkeypatch):
    out = unpack_pairs(source, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(tfrecord, "write_pairs", lambda *_: pytest.fail("unpacked again"))
        unpack_pairs(source, out)
    write_pair(source, "test", TEST | {"test/NORMAL/IM-0008-0001.jpeg": jpeg(8)})
    assert "test/NORMAL/IM-0008-0001.jpeg" in contents(unpack_pairs(source, out))
    (out / "test/NORMAL/IM-0008-0001.jpeg").unlink()
    assert "test/NORMAL/IM-0008-0001.jpeg" in contents(unpack_pairs(source, out))


def test_what_an_interrupted_unpacking_left_is_cleared_away(source, tmp_path):
    left = tmp_path / ".out.filling/train/NORMAL/half.jpeg"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert len(contents(unpack_pairs(source, tmp_path / "out"))) == 6
    assert not (tmp_path / ".out.filling").exists()


def test_a_failed_unpacking_leaves_the_older_one(source, tmp_path):
    before = contents(unpack_pairs(source, tmp_path / "out"))
    write_records(source / "test/images.tfrec", [b"no JPEG"] * 2)
    with pytest.raises(DataError):
        unpack_pairs(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("strange", ["mine.txt", "train/NORMAL/mine.jpeg", "more/train/mine.jpeg", None])
def test_a_folder_with_anything_of_others_is_never_overwritten(source, tmp_path, strange):
    out = tmp_path / "out"
    if strange:
        unpack_pairs(source, out)
        (out / strange).parent.mkdir(parents=True, exist_ok=True)
        (out / strange).write_bytes(b"mine")
    else:
        out.mkdir()
        (out / MARKER).write_text(json.dumps(["another program's"]), encoding="utf-8")
    os.utime(source / "test/paths.tfrec", (1, 1))
    before = contents(out)
    with pytest.raises(DataError, match="holds files that were not made here"):
        unpack_pairs(source, out)
    assert contents(out) == before


def test_an_empty_folder_and_a_link_to_one_serve(source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    assert len(contents(unpack_pairs(source, tmp_path / "out"))) == 6
    assert (tmp_path / "out").is_symlink()
