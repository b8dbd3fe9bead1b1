"""The manifest: every image once, every broken file by name, nothing skipped in silence."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from conftest import save_image
from pneumolib.data import manifest as module
from pneumolib.data.layout import identify
from pneumolib.data.manifest import COLUMNS, describe_file, read_manifest
from pneumolib.errors import DataError
from pneumolib.params import DataParams


@pytest.fixture
def read(archive, tmp_path):
    return lambda **options: read_manifest(DataParams(root=str(archive), **options), cache_dir=tmp_path / "cache")


def test_columns_labels_and_groups(read, archive):
    manifest = read()
    table = manifest.table.set_index("image_id")
    assert list(manifest.table.columns) == COLUMNS
    assert len(table) == 4 * 32
    assert manifest.problems.empty
    assert not manifest.synthetic
    row = table.loc["train/PNEUMONIA/person3_bacteria_6"]
    assert (row.label, row.kind, row.group_id, row.source_split) == (1, "bacteria", "bacteria-3", "train")
    assert (row.width_px, row.height_px, row["mode"]) == (48, 40, "L")
    assert row.bytes == (archive / row.path).stat().st_size
    assert 175 < row.mean_intensity < 225
    assert row.pixel_min <= row.mean_intensity <= row.pixel_max
    assert 0 < row.sd_intensity < 20
    dark = table.loc["test/NORMAL/IM-0027-0001"]
    assert dark.mean_intensity < 65
    assert dark.pixel_hash != row.pixel_hash
    assert table.loc["test/NORMAL/IM-0027-0001"].group_id == "IM-27"


@pytest.mark.parametrize(
    ("class_name", "stem", "expected"),
    [
        ("PNEUMONIA", "person1_bacteria_2", ("bacteria", "bacteria-1")),
        ("PNEUMONIA", "person1_virus_6", ("virus", "virus-1")),
        ("PNEUMONIA", "person447_virus_921_1", ("virus", "virus-447")),  # the archive's one irregular name
        ("NORMAL", "IM-0115-0001", ("normal", "IM-115")),
        ("NORMAL", "IM-0435-0001-0002", ("normal", "IM-435")),
        ("NORMAL", "NORMAL2-IM-0381-0001", ("normal", "NORMAL2-IM-381")),
        ("NORMAL", "person1_virus_6", None),
        ("PNEUMONIA", "scan_17", None),
    ],
)
def test_names_give_kind_and_group(class_name, stem, expected):
    assert identify(class_name, stem) == expected


def test_leftovers_of_operating_systems_and_nested_copies_are_ignored(read, archive):
    before = read().table
    (archive / "train/NORMAL/.DS_Store").write_bytes(b"x")
    (archive / "train/NORMAL/._IM-0001-0001.jpeg").write_bytes(b"x")
    (archive / "__MACOSX/train").mkdir(parents=True)
    shutil.copytree(archive / "train", archive / "chest_xray/train")
    again = read()
    assert again.table.equals(before)
    assert again.problems.empty


def test_unusable_files_are_named_with_the_reason_and_left_out(read, archive, capsys):
    folder = archive / "train/NORMAL"
    whole = (folder / "IM-0001-0001.jpeg").read_bytes()
    (folder / "IM-0900-0001.jpeg").write_bytes(b"")
    (folder / "IM-0901-0001.jpeg").write_bytes(whole[: len(whole) // 2])
    (folder / "IM-0902-0001.jpeg").write_bytes(b"<html>not found</html>")
    (folder / "notes.txt").write_text("by hand", encoding="utf-8")
    (folder / "IM-0903-0001.jpeg").symlink_to("nowhere")
    (folder / "more").mkdir()
    manifest = read()
    reasons = manifest.problems.set_index("path").reason.to_dict()
    assert {path.split("/")[-1]: reason.split(":")[0] for path, reason in reasons.items()} == {
        "IM-0900-0001.jpeg": "empty file (0 bytes)",
        "IM-0901-0001.jpeg": "does not decode",
        "IM-0902-0001.jpeg": "not a JPEG, PNG or DICOM image",
        "IM-0903-0001.jpeg": "cannot be read",
        "notes.txt": "not an image file (.txt ending)",
        "more": "a folder inside a class folder",
    }
    assert not set(reasons) & set(manifest.table.path)
    said = capsys.readouterr().err
    assert "LEFT OUT: 6 file(s)" in said
    assert all(path in said for path in reasons)


def test_unknown_names_are_an_error_that_says_what_was_looked_for(read, archive):
    save_image(archive / "train/PNEUMONIA/scan 17.jpeg", np.zeros((8, 8)))
    with pytest.raises(DataError) as caught:
        read()
    assert "train/PNEUMONIA/scan 17.jpeg" in str(caught.value)
    assert "person<N>_<bacteria|virus>_<M>.jpeg" in str(caught.value)


def test_missing_folders_say_what_was_looked_for_and_where(read, archive, tmp_path):
    shutil.rmtree(archive / "test/NORMAL")
    with pytest.raises(DataError, match=r"missing: test/NORMAL.*Folders found there: test, train, val"):
        read()
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        read_manifest(DataParams(root=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=rf"Did you mean {archive}"):
        read_manifest(DataParams(root=str(tmp_path)))


def test_a_split_without_usable_images_is_an_error(read, archive):
    for file in (archive / "test/NORMAL").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable image in test/NORMAL.*empty file"):
        read()


def test_val_folder_can_be_left_out_and_may_be_missing(read, archive):
    assert set(read().table.source_split) == {"train", "val", "test"}
    assert set(read(val_folder="leave_out").table.source_split) == {"train", "test"}
    shutil.rmtree(archive / "val/NORMAL")
    with pytest.raises(DataError, match=r"missing: val/NORMAL"):
        read()
    shutil.rmtree(archive / "val")
    assert set(read().table.source_split) == {"train", "test"}


def test_twins_that_differ_in_ending_are_refused(read, archive):
    save_image(archive / "train/NORMAL/IM-0001-0001.png", np.zeros((8, 8)))
    with pytest.raises(DataError, match="differ in their ending only: train/NORMAL/IM-0001-0001"):
        read()


def test_only_changed_files_are_read_again(read, archive, monkeypatch):
    first = read()
    opened = []
    monkeypatch.setattr(module, "describe_file", lambda path: opened.append(path.name) or describe_file(path))
    assert read().table.equals(first.table)
    assert opened == []
    file = archive / "train/NORMAL/IM-0001-0001.jpeg"
    os.utime(file, (1, 1))
    assert read().fingerprint == first.fingerprint  # touched, but the same content
    save_image(file, np.full((40, 48), 99))
    assert read().fingerprint != first.fingerprint
    for column in ("label", "kind", "group_id", "source_split"):
        moved = replace(
            first, table=first.table.assign(**{column: first.table[column].sample(frac=1, random_state=0).to_numpy()})
        )
        assert moved.fingerprint != first.fingerprint, column
    assert opened == [file.name] * 2


@pytest.mark.shared
def test_real_radiographs(shared_data, tmp_path):
    manifest = read_manifest(DataParams(root=str(shared_data / "chest_xray")), cache_dir=tmp_path)
    counts = manifest.table.groupby(["source_split", "label"]).size().to_dict()
    assert counts == {
        ("train", 0): 1187,
        ("train", 1): 3678,
        ("val", 0): 8,
        ("val", 1): 8,
        ("test", 0): 146,
        ("test", 1): 189,
    }
    assert manifest.problems.empty
    test = manifest.table.source_split == "test"
    assert not set(manifest.table.group_id[test]) & set(manifest.table.group_id[~test])
