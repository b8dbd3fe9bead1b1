"""Sources of all kinds give one manifest: folders, tables, arrays and TFRecord files."""

import io
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import save_image
from pneumolib.data.layout import CLASSES, identify
from pneumolib.data.manifest import further_columns, read_manifest
from pneumolib.data.split import split_manifest
from pneumolib.errors import DataError
from pneumolib.params import DataParams, SplitParams
from test_decode import RAMP, write_dicom
from test_download import write_pair


def read(root, cache, **options):
    return read_manifest(DataParams(root=str(root), **options), cache_dir=cache)


# --- folders


def test_names_give_kind_and_group():
    for stem, *expected in (
        ("person1_bacteria_2", "bacteria", "bacteria-1"),
        ("person447_virus_921_1", "virus", "virus-447"),  # the archive's one irregular name
        ("IM-0435-0001-0002", "normal", "IM-435"),
        ("NORMAL2-IM-0381-0001", "normal", "NORMAL2-IM-381"),
    ):
        own, other = sorted(CLASSES, reverse=stem.startswith("person"))
        assert identify(own, stem) == tuple(expected)
        assert identify(other, stem) is None


def test_links_that_lead_in_circles(archive, tmp_path):
    folder = archive / "train/NORMAL"
    (folder / "IM-0900-0001.jpeg").symlink_to("IM-0901-0001.jpeg")
    (folder / "IM-0901-0001.jpeg").symlink_to("IM-0900-0001.jpeg")
    (folder / "round").symlink_to(archive, target_is_directory=True)
    (archive / "again").symlink_to(archive, target_is_directory=True)
    problems = read(archive, tmp_path / "cache").problems
    names = ["IM-0900-0001.jpeg", "IM-0901-0001.jpeg", "round/"]
    assert problems.path.tolist() == ["again/", *(f"train/NORMAL/{name}" for name in names)]
    assert problems.reason[1:3].str.contains("symbolic links").all()
    (archive / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="is not a folder"):
        read(archive / "loop", tmp_path / "cache")


def test_normal_and_opacity_are_the_classes_of_the_revised_split(archive, tmp_path):
    before = read(archive, tmp_path / "cache").table
    for split in ("train", "val", "test"):
        (archive / split / "NORMAL").rename(archive / split / "Normal")
        (archive / split / "PNEUMONIA").rename(archive / split / "Opacity")
    after = read(archive, tmp_path / "cache").table
    renamed = before.image_id.str.replace("NORMAL/", "Normal/").str.replace("PNEUMONIA", "Opacity")
    assert after.image_id.tolist() == sorted(renamed)
    assert dict(zip(renamed, before.label, strict=True)) == dict(zip(after.image_id, after.label, strict=True))


def test_tfrecord_pairs_give_the_same_manifest(archive, tmp_path, monkeypatch):
    """Val among train, as the Keras example publishes the archive."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    folder = tmp_path / "records"
    for part, splits in (("train", ("train", "val")), ("test", ("test",))):
        files = sorted(f for split in splits for f in (archive / split).rglob("*.jpeg"))
        write_pair(folder, part, {f.relative_to(archive).as_posix(): f.read_bytes() for f in files})
    from_folder = read(archive, tmp_path / "cache")
    from_records = read(folder, tmp_path / "cache", source="tfrecord")
    pd.testing.assert_frame_equal(from_records.table, from_folder.table)
    assert from_records.fingerprint == from_folder.fingerprint
    with pytest.raises(DataError, match=r"set data\.source: tfrecord"):
        read(folder, tmp_path / "cache")
    (folder / "train/images.tfrec").write_bytes(b"x" * 40)
    with pytest.raises(DataError, match=r"data\.root: .*train/images\.tfrec: record 1"):
        read(folder, tmp_path / "cache", source="tfrecord")


# --- CSV


@pytest.fixture
def table_of_paths(tmp_path):
    """PNG, JPEG and DICOM in one table, with names that hold spaces and letters of other alphabets."""
    folder, rows = tmp_path / "fälle 2026", []
    for number in range(8):
        for label in (0, 1):
            level = (60 + 120 * label + RAMP).astype(np.uint8)
            form = ("bild {} é {}.png", "снимок {} {}.jpeg", "胸部 {} {}.dcm")[number % 3]
            name = form.format(number, label)
            if name.endswith("dcm"):
                write_dicom(folder / name, level, bits=8)
            else:
                save_image(folder / name, level)
            split = ["train", "train", "train", "val", "test"][number % 5]
            rows.append([name, ["normal", "1"][label], f"p{number}-{label}", ["", "virus"][label], split])
    table = pd.DataFrame(rows, columns=["path", "label", "group_id", "kind", "split"])
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv", table


def test_a_table_of_paths_gives_the_same_manifest(table_of_paths, tmp_path):
    file, table = table_of_paths
    manifest = read(file, tmp_path / "cache", source="csv")
    found = manifest.table.set_index("image_id").loc[table.path]
    assert found.label.tolist() == [0, 1] * 8
    assert found.kind.tolist() == ["normal", "virus"] * 8
    assert found.group_id.tolist() == table.group_id.tolist()
    assert (found.mean_intensity > 120).tolist() == [False, True] * 8
    assert found["mode"].str.startswith("DICOM").sum() == table.path.str.endswith("dcm").sum()
    split = split_manifest(manifest.table, SplitParams(validation="as_published", ratio_tolerance_points=40.0))
    assert dict(zip(split.image_id, split.split, strict=True)) == dict(zip(table.path, table.split, strict=True))
    assert read(file.parent, tmp_path / "cache", source="csv").fingerprint == manifest.fingerprint
    left_out = read(file, tmp_path / "cache", source="csv", val_folder="leave_out")
    assert set(left_out.table.source_split) == {"train", "test"}
    table.assign(site=["north", "south"] * (len(table) // 2)).to_csv(file, index=False)
    named = read(file, tmp_path / "cache", source="csv")
    assert (set(manifest.table.site), set(named.table.site)) == ({""}, {"north", "south"})
    assert named.fingerprint != manifest.fingerprint
    # Further columns are kept as text, whatever they are called, but for names of measured facts.
    more = {"age_years": [*range(len(table) - 1), ""], "reason": "routine", "mode": "portable"}
    table.assign(**more).to_csv(file, index=False)
    kept = read(file, tmp_path / "cache", source="csv")
    assert further_columns(kept.table) == ["age_years", "reason"]
    assert kept.table.set_index("image_id").age_years[table.path].tolist() == list(map(str, more["age_years"]))
    assert not (kept.table["mode"] == "portable").any()
    assert kept.fingerprint != manifest.fingerprint
    (file.parent / table.path[0]).unlink()
    missing = read(file, tmp_path / "cache", source="csv").problems
    assert missing.to_numpy().tolist() == [[table.path[0], "cannot be read: No such file or directory", 1]]


# What is done to the table, and what is said of it.
FAULTS = [
    (
        lambda t: t.assign(
            label=t.label.where(t.index != 0, "maybe"),
            split=t.split.where(t.index != 1, "tests"),
            group_id=t.group_id.where(t.index != 2, ""),
            path=t.path.where(t.index != 3, t.path[4]),
        ),
        r"4 fault\(s\):\n  line 2: label 'maybe' is none of 0, 1, normal.*\n  line 4: group_id '' names no patient.*\n"
        r"  line 3: split 'tests' is none of train, val, test\n  lines 5, 6: path .* is one file, but its rows differ",
    ),
    (lambda t: t.assign(path=t.path.where(t.index != 0, "bi\0ld")), "line 2: path .* holds a control character"),
    (
        lambda t: t.assign(group_id=t.group_id.replace("p4-1", "p0-1")),
        r"1 fault\(s\):\n  lines 3, 11: group_id 'p0-1' is in test and in training",
    ),
    (lambda t: t.assign(kind="virus"), r"lines 2, 4, 6, \.\.\. \(8 rows\): kind 'virus' contradicts the label"),
    (
        lambda t: t[(t.split != "test") | (t.label == "1")],
        r"no usable image in test/NORMAL.*Files left out.*data\.val_folder",
    ),
    (lambda t: t.drop(columns="group_id"), r"missing column\(s\) group_id; .*group_id is the patient"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_faults_of_a_table_are_told_by_line(table_of_paths, tmp_path, change, words):
    file, table = table_of_paths
    change(table).to_csv(file, index=False)
    with pytest.raises(DataError, match=f"(?s){words}"):
        read(file, tmp_path / "cache", source="csv", val_folder="leave_out")


def test_odd_tables_are_read_or_refused_in_words(table_of_paths, tmp_path, capsys):
    file, _ = table_of_paths
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    before = read(file, tmp_path / "cache", source="csv").fingerprint
    file.write_text("\ufeff" + "\r\n".join([lines[0], "", *lines[1:]]) + "\r\n", encoding="utf-8", newline="")
    assert read(file, tmp_path / "cache", source="csv").fingerprint == before
    with pytest.raises(DataError, match=r"is a file; for a table of paths set data\.source: csv"):
        read(file, tmp_path / "cache")
    file.write_text("\n".join([lines[0], "", *lines[1:], lines[1].replace("bild", "./bild")]), encoding="utf-8")
    assert read(file, tmp_path / "cache", source="csv").fingerprint == before
    assert "line 19: an image of an earlier line; each image counts once" in capsys.readouterr().err
    file.write_text("\n".join([*lines, lines[1].replace("bild", "./bild").replace("normal", "1")]), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"lines 2, 18: path 'bild .* \(line 2\) and '\./bild .* \(line 18\) is one file"
    ):
        read(file, tmp_path / "cache", source="csv")
    for separator in ";\t":
        file.write_text(text.replace(",", separator), encoding="utf-8")
        assert read(file, tmp_path / "cache", source="csv").fingerprint == before
    for raw, words in (
        (b"\xff\xfe\x00", r"not a CSV table in UTF-8.*\.npz set data\.source: npz"),
        (b"", "the table has no rows"),
        (b"path,label,group_id,split\n", "the table has no rows"),
        (b"PK\3\4 xl/workbook.xml", r"Save a workbook \(\.xlsx.*`CSV UTF-8`"),
        (b"path,Label,label ,group_id\na,1,1,p\n", "one column twice: Label, label"),
        (b"path,label,group_id\na,b.png,1,p\n", "line 2: more cells than 3 heads"),
        (b'path,label,group_id\n"a,1,p\n', "from line 2: unexpected end"),
    ):
        file.write_bytes(raw)
        with pytest.raises(DataError, match=words):
            read(file, tmp_path / "cache", source="csv")


# --- npz


@pytest.fixture
def npz(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 12), ("val", 4), ("test", 6)):
        labels = np.arange(n)[:, None] % 2
        arrays[f"{split}_images"] = (40 + 150 * labels[..., None] + rng.integers(0, 20, (n, 28, 28))).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    return tmp_path / "pneumoniamnist.npz", arrays


@pytest.mark.parametrize("channels", [(), (1,)])
def test_npz_gives_the_same_manifest(npz, tmp_path, capsys, channels):
    file, arrays = npz
    np.savez(file, **{k: v.reshape(*v.shape, *channels) if k.endswith("images") else v for k, v in arrays.items()})
    manifest = read(file, tmp_path / "cache", source="npz")
    assert len(manifest.table) == 22
    assert manifest.table.group_id.is_unique
    assert "names no patients" in capsys.readouterr().err
    for row in manifest.table.itertuples():
        split, number = row.source_split, int(row.image_id.split("/")[2].removesuffix(".png"))
        with Image.open(manifest.root / row.path) as image:
            np.testing.assert_array_equal(np.asarray(image), arrays[f"{split}_images"][number])
        assert row.label == arrays[f"{split}_labels"][number, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_images": np.zeros((6, 0, 28), np.uint8)}, r"expected test_images uint8 .*received uint8 \(6, 0, 28\)"),
        ({"test_labels": None}, "missing test_labels; found "),
        ({"train_labels": np.full(12, 3)}, r"train_labels n values of 0 or 1, received 12: \[3\]"),
        ({"train_images": np.zeros((12, 28, 28), np.float32)}, r"expected train_images uint8 .*received float32"),
        (
            {"val_labels": np.array(["0", "1"] * 2, dtype=object)},
            "val_labels.npy: Python objects; save it anew as numbers",
        ),
    ],
)
def test_npz_of_another_form_is_refused(npz, tmp_path, change, words):
    file, arrays = npz
    np.savez(file, **{name: value for name, value in (arrays | change).items() if value is not None})
    with pytest.raises(DataError, match=words):
        read(file, tmp_path / "cache", source="npz")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"no whole \.npz file"):
        read(file, tmp_path / "cache", source="npz")


@pytest.mark.parametrize(
    ("shape", "dtype", "held", "words"),
    [
        ((100_000, 100_000), "|u1", 999, "test_images.npy: buffer is too small"),
        ((10**12, 10**12, 10**12), "|u1", 0, "test_images.npy: .*(too big|too large|maximum)"),
        ((40_000, 1000), "|u1", 40_000_000, "list of members: more than 100 times as large"),
        ((3,), "|O", 24, "test_images.npy: Python objects; save it anew as numbers"),
    ],
)
def test_an_npz_takes_no_more_memory_than_it_holds(npz, tmp_path, shape, dtype, held, words):
    file, head = npz[0], io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test_images.npy", head.getvalue() + bytes(held))
    tracemalloc.start()
    with pytest.raises(DataError, match=words):
        read(file, tmp_path / "cache", source="npz")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
