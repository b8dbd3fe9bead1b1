"""Folders of radiographs as people have them: every file is taken once, or named with the reason."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumolib.data.folders import list_folder
from pneumolib.data.manifest import read_manifest
from pneumolib.errors import DataError, PneumolibError
from pneumolib.params import DataParams


def read(root, cache, **options):
    return read_manifest(DataParams(root=str(root), **options), cache_dir=cache)


# Folders and files as people have them; an image's name is one of a patient of its class.
FOLDERS = [
    "train",
    "Train",
    "VALID",
    "val",
    "validation",
    "test",
    "holdout",
    "NORMAL",
    "normal",
    "Pneumonia",
    "COVID",
    "Lung_Opacity",
]
FILES = [
    "IM-0001-0001.jpeg",
    "person1_virus_1.jpeg",
    "notes.txt",
    ".DS_Store",
    "a\nb \x1b[31m.png",
    os.fsdecode(b"M\xfcller.jpeg"),
]
TREES = st.dictionaries(
    st.tuples(st.lists(st.sampled_from(FOLDERS), max_size=4).map(tuple), st.sampled_from(FILES)), st.none(), max_size=25
)


@settings(max_examples=150, deadline=None)
@given(
    tree=TREES,
    join=st.sampled_from(["join", "leave_out"]),
    classes=st.sampled_from([{}, {"covid": "pneumonia"}, {"COVID": "left_out"}]),
)
def test_every_file_below_the_root_is_taken_or_named(tree, join, classes):
    """Once each; or the folder is refused in words."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folders, file in tree:
            (root / "/".join(folders)).mkdir(parents=True, exist_ok=True)
            (root / "/".join(folders) / file).touch()
        listing, refused = None, ""
        try:
            listing = list_folder(root, DataParams(root=name, val_folder=join, classes=classes))
        except DataError as fault:
            refused = str(fault)
        assert refused.isprintable()
        if listing is None:
            return
        there = sum(file != ".DS_Store" for _, file in tree)
        images, strangers = listing
        copies = [s["path"] for s in strangers if "second copy" in s["reason"]]
        again = sum(file != ".DS_Store" and any(_within(folders, path) for path in copies) for folders, file in tree)
        assert len(images) + sum(s.get("files", 1) for s in strangers) + again == there
        for folders, file in tree:
            if file != ".DS_Store" and any(_within(folders, path) for path in copies):  # it is there without one folder
                assert {((*folders[:n], *folders[n + 1 :]), file) for n in range(len(folders))} & tree.keys()
        assert all(stranger["path"].isprintable() for stranger in strangers)
        assert all((root / image["path"]).is_file() for image in images)


def _within(folders, path):
    return path.endswith("/") and "/".join([*folders, ""]).startswith(path)


def test_splits_in_any_case_and_further_classes(archive, tmp_path):
    (archive / "train").rename(archive / "Train")
    (archive / "val").rename(archive / "VALIDATION")
    shutil.copytree(archive / "test/PNEUMONIA", archive / "test/Covid 19")
    shutil.copy(archive / "test/NORMAL/IM-0027-0001.jpeg", archive / "test")
    found = read(archive, tmp_path / "cache")
    assert set(found.table.source_split) == {"train", "val", "test"}
    assert found.problems.path.tolist() == ["test/Covid 19/", "test/IM-0027-0001.jpeg"]
    assert "data.classes: {'Covid 19': pneumonia}" in found.problems.reason[0]
    taken = read(archive, tmp_path / "cache", classes={"covid_19": "pneumonia"})
    assert len(taken.table) == len(found.table) + found.problems.files[0]
    left_out = read(archive, tmp_path / "cache", classes={"COVID 19": "left_out"})
    assert left_out.problems.reason[0] == "left out by data.classes"
    with pytest.raises(DataError, match=r"data\.classes names 'covd'"):
        read(archive, tmp_path / "cache", classes={"covd": "left_out"})
    with pytest.raises(DataError, match=r"data\.classes names one folder twice: a b, A_B"):
        read(archive, tmp_path / "cache", classes={"a b": "left_out", "A_B": "pneumonia"})
    (archive / "train").mkdir()
    with pytest.raises(DataError, match="'Train' and 'train' are both train"):
        read(archive, tmp_path / "cache")


def test_a_name_that_tells_no_patient_is_left_out_and_a_nested_copy_is_one_entry(archive, tmp_path, capsys):
    whole = read(archive, tmp_path / "cache").table
    shutil.copytree(archive, tmp_path / "copy/chest_xray")
    (tmp_path / "copy/chest_xray/.DS_Store").touch()
    (tmp_path / "copy/chest_xray").rename(archive / "chest_xray")
    for name in (os.fsdecode(b"M\xfcller.jpeg"), "scan 17.jpeg"):
        shutil.copy(archive / whole.path[0], archive / "train/NORMAL" / name)
    found = read(archive, tmp_path / "cache")
    assert found.table.equals(whole)
    rows = found.problems.set_index("path")
    assert (
        rows.reason["chest_xray/"]
        == f"a second copy of the folder it is in, by names and sizes of its {len(whole)} files"
    )
    assert (rows.files["chest_xray/"], rows.files.sum()) == (0, 2)
    with (archive / "chest_xray" / whole.path[0]).open("ab") as other:
        other.write(b"x")
    found = read(archive, tmp_path / "cache").problems.set_index("path").loc["chest_xray/"]
    assert (found.reason, found.files) == ("beside train, val and test", len(whole))
    (archive / "more").mkdir()
    (archive / "more/lost.png").symlink_to("nowhere")
    assert read(archive, tmp_path / "cache").problems.set_index("path").files["more/"] == 1
    for name in ("M\\xfcller.jpeg", "scan 17.jpeg"):
        assert "tells no patient; looked for [NORMAL2-]IM-<N>-<k>" in rows.reason[f"train/NORMAL/{name}"]
    assert f"LEFT OUT: 2 file(s), {len(whole)} images remain" in capsys.readouterr().err


def test_a_class_folder_that_cannot_be_read_is_named(archive, tmp_path, monkeypatch):
    """Permission bits would not do: root reads all."""
    shut, listed = archive / "test/NORMAL", Path.iterdir

    def iterdir(folder):
        if folder == shut:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(
        PneumolibError, match=r"^data\.root: Permission denied: '.*test/NORMAL'; give yourself the right to it"
    ) as said:
        read(archive, tmp_path / "cache")
    assert "\n" not in str(said.value)
