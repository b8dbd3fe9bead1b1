"""The manifest: every image once, every broken file by name, nothing skipped in silence."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import REPO, save_image
from pneumolib.data import manifest as module
from pneumolib.data.manifest import COLUMNS, describe_file, read_manifest
from pneumolib.data.sources import list_source
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
    assert row.bytes == (archive / row.path).stat().st_size
    assert table.mean_intensity["test/NORMAL/IM-0027-0001"] < 65 < 175 < row.mean_intensity < 225


def test_leftovers_of_operating_systems_are_ignored_and_nested_copies_are_named(read, archive):
    before = read().table
    (archive / "train/NORMAL/.DS_Store").write_bytes(b"x")
    (archive / "train/NORMAL/._IM-0001-0001.jpeg").write_bytes(b"x")
    (archive / "__MACOSX/train").mkdir(parents=True)
    shutil.copytree(archive / "train", archive / "chest_xray/train")
    again = read()
    assert again.table.equals(before)
    copy = "a second copy of the folder it is in, by names and sizes of its 96 files"
    assert again.problems.to_numpy().tolist() == [["chest_xray/", copy, 0]]


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
    assert {path.rstrip("/").split("/")[-1]: reason.split(":")[0] for path, reason in reasons.items()} == {
        "IM-0900-0001.jpeg": "empty file (0 bytes)",
        "IM-0901-0001.jpeg": "does not decode",
        "IM-0902-0001.jpeg": "not a JPEG, PNG or DICOM image",
        "IM-0903-0001.jpeg": "cannot be read",
        "notes.txt": "not an image file (.txt ending)",
        "more": "a folder inside a class folder",
    }
    assert not set(reasons) & set(manifest.table.path)
    said = capsys.readouterr().err
    assert "LEFT OUT: 5 file(s)" in said  # and an empty folder
    assert all(path in said for path in reasons)
    (folder / "nowhere").write_bytes(whole)  # what may pass is asked about again
    assert "IM-0903-0001.jpeg" not in read().problems.path.str.cat()


# What is done to the archive, and what is said of it.
FAULTS = [
    (
        lambda root: [
            file.rename(file.with_name(f"scan {file.name}")) for file in (root / "train/PNEUMONIA").iterdir()
        ],
        r"(?s)no usable image in train/PNEUMONIA.*scan person.*tells no patient; looked for person<N>_<bacteria\|virus>",
    ),
    (
        lambda root: save_image(root / "train/NORMAL/IM-0001-0001.png", np.zeros((8, 8))),
        "differ in their ending only: train/NORMAL/IM-0001-0001",
    ),
    (lambda root: shutil.rmtree(root / "test/NORMAL"), "no usable image in test/NORMAL .*No file was left out"),
    (lambda root: shutil.rmtree(root), "archive is not a folder"),
    (
        lambda root: [(root / "in").mkdir(), *((root / s).rename(root / "in" / s) for s in ("train", "val", "test"))],
        "looked for train/NORMAL.*found in. Name their folder",
    ),
    (
        lambda root: [file.write_bytes(b"") for file in (root / "test/NORMAL").iterdir()],
        r"(?s)no usable image in test/NORMAL.*6 file\(s\), test/NORMAL/IM-0027-0001\.jpeg.*and 1 more: empty file",
    ),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_data_that_cannot_be_used_is_refused_in_words(read, archive, change, words):
    change(archive)
    with pytest.raises(DataError, match=words):
        read()


def test_val_folder_can_be_left_out_and_may_be_missing(read, archive):
    assert set(read(val_folder="leave_out").table.source_split) == {"train", "test"}
    shutil.rmtree(archive / "val")
    assert set(read().table.source_split) == {"train", "test"}


def test_only_changed_files_are_read_again(read, archive, monkeypatch):
    first = read()
    opened = []
    monkeypatch.setattr(module, "describe_file", lambda path, limits: opened.append(path.name) or describe_file(path))
    assert read().table.equals(first.table)
    assert opened == []
    file = archive / "train/NORMAL/IM-0001-0001.jpeg"
    os.utime(file, (1, 1))
    assert read().fingerprint == first.fingerprint  # touched, but the same content
    save_image(file, np.full((40, 48), 99))
    assert read().fingerprint != first.fingerprint
    for column in ("label", "kind", "group_id", "source_split"):
        shuffled = first.table[column].sample(frac=1, random_state=0).to_numpy()
        moved = replace(first, table=first.table.assign(**{column: shuffled}))
        assert moved.fingerprint != first.fingerprint, column
    assert opened == [file.name] * 2


@pytest.mark.shared
def test_real_radiographs():
    """All are listed, one in twenty is decoded."""
    root = REPO.parent / "shared/data/chest_xray"
    if not root.is_dir():
        pytest.skip("the real radiographs beside the repository are not on this machine")
    folder, images, strangers = list_source(DataParams(root=str(root)))
    images = pd.DataFrame(images)
    assert images.groupby(["label", "source_split"]).size().tolist() == [146, 1187, 8, 189, 3678, 8]
    assert strangers == []
    test = images.source_split == "test"
    assert not set(images.group_id[test]) & set(images.group_id[~test])
    facts = pd.DataFrame([describe_file(folder / path) for path in images.path[::20]])
    assert "reason" not in facts
    assert facts.width_px.min() > 200
