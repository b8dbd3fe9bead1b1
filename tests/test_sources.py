"""Sources of all kinds give one manifest; files of all kinds are read or named."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    generate_uid,
)

from conftest import save_image
from pneumolib.data.decoding import ImageFileError, decode
from pneumolib.data.manifest import describe_file, read_manifest
from pneumolib.data.pixels import load_image
from pneumolib.data.sources import ManifestError
from pneumolib.data.split import split_manifest
from pneumolib.params import DataParams, ImageParams, SplitParams
from test_tfrecord import write_pair

RAMP = np.tile(np.arange(64), (48, 1))  # dark on the left, bright on the right


def read(root, cache, **options):
    return read_manifest(DataParams(root=str(root), **options), cache_dir=cache)


def write_dicom(path, stored, bits=12, photometric="MONOCHROME2", **elements):
    """A DICOM file of `stored`; further elements by keyword."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName, dataset.PatientID = "Secret^Name", "4711"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.PixelData = stored.astype(np.uint8 if bits <= 8 else np.uint16).tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def grey(path):
    return np.asarray(decode(path.read_bytes(), grey=True).image).astype(int)


# --- DICOM


def test_dicom_without_a_window_is_spread_from_lowest_to_highest(tmp_path):
    file = write_dicom(tmp_path / "x.dcm", 1000 + 10 * RAMP)
    decoded = decode(file.read_bytes())
    assert (decoded.pixel_min, decoded.pixel_max) == (1000, 1630)
    assert decoded.mode == "DICOM MONOCHROME2 12 bit"
    np.testing.assert_allclose(grey(file)[0], np.arange(64) * 255 / 63, atol=1)


def test_dicom_of_8_bit_stays_as_it_is(tmp_path):
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "x.dcm", 50 + RAMP, bits=8)), 50 + RAMP)


def test_the_first_window_is_applied_after_the_rescale(tmp_path):
    # Stored 0..63 become -1000..-370; the window runs from -800 to -600, that is from column 20 to column 40.
    file = write_dicom(
        tmp_path / "x.dcm", RAMP, RescaleSlope="10", RescaleIntercept="-1000", RescaleType="US",
        WindowCenter=["-700", "0"], WindowWidth=["200", "10"], VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    row = grey(file)[0]
    assert (row[:20] == 0).all()
    assert (row[41:] == 255).all()
    assert abs(row[30] - 127) <= 1


def test_a_sigmoid_window_is_spread_over_the_whole_range(tmp_path):
    file = write_dicom(tmp_path / "x.dcm", RAMP * 60, WindowCenter="1900", WindowWidth="400", VOILUTFunction="SIGMOID")
    row = grey(file)[0]
    assert row[0] == 0
    assert row[-1] == 255
    assert (np.diff(row) >= 0).all()


def test_a_voi_lut_is_looked_up(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTExplanation = [64, 0, 16], "steps"
    table.LUTData = ((np.arange(64) >= 32) * 65535).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    file = write_dicom(tmp_path / "x.dcm", RAMP, VOILUTSequence=[table])
    np.testing.assert_array_equal(grey(file)[0], np.where(np.arange(64) >= 32, 255, 0))


def test_monochrome1_is_turned_over_and_padding_stays_black(tmp_path):
    stored = 100 + RAMP
    stored[:8] = 0
    file = write_dicom(tmp_path / "x.dcm", stored, photometric="MONOCHROME1", PixelPaddingValue=0)
    seen = grey(file)
    assert (seen[:8] == 0).all()
    assert seen[20, 0] == 255
    assert seen[20, -1] == 0


@pytest.mark.parametrize("elements", [
    {"WindowCenter": "", "WindowWidth": ""},
    {"WindowCenter": "500", "WindowWidth": "0"},
    {"RescaleSlope": "", "RescaleIntercept": ""},
    {"VOILUTSequence": []},
    {"PixelPaddingValue": None},
])  # fmt: skip
def test_elements_that_are_empty_or_void_count_as_absent(tmp_path, elements):
    file = write_dicom(tmp_path / "x.dcm", 1000 + 10 * RAMP, **elements)
    np.testing.assert_allclose(grey(file)[0], np.arange(64) * 255 / 63, atol=1)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": "-32", "WindowWidth": "64"}])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_negative_slope_turns_grey_values_over(tmp_path, bits, window):
    file = write_dicom(tmp_path / "x.dcm", RAMP, bits=bits, RescaleSlope="-1", RescaleIntercept="0", **window)
    row = grey(file)[0]
    assert (np.diff(row) <= 0).all()
    assert row[0] - row[-1] >= 60


def test_six_bits_are_spread_over_eight(tmp_path):
    np.testing.assert_allclose(grey(write_dicom(tmp_path / "x.dcm", RAMP, bits=6))[0], np.arange(64) * 255 / 63, atol=1)


def test_a_palette_is_looked_up(tmp_path):
    inverted = (65535 - np.arange(64) * 1024).astype("<u2").tobytes()
    colours = {f"{name}PaletteColorLookupTable{part}": value for name in ("Red", "Green", "Blue")
               for part, value in (("Descriptor", [64, 0, 16]), ("Data", inverted))}  # fmt: skip
    row = grey(write_dicom(tmp_path / "x.dcm", RAMP, bits=8, photometric="PALETTE COLOR", **colours))[0]
    assert row[0] >= 254
    assert (np.diff(row) < 0).all()


@pytest.mark.parametrize(("syntax", "name"), [(JPEGLSLossless, "JPEG-LS"), (MPEG2MPML, "MPEG2")])
def test_a_compression_without_decoder_is_named_and_asked_about_again(tmp_path, syntax, name):
    file = write_dicom(tmp_path / "x.dcm", RAMP)
    dataset = dcmread(file)
    dataset.PixelData = encapsulate([b"\xff\x4f" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(file)
    fact = describe_file(file)
    assert name in fact["reason"]
    assert "pip install python-gdcm" in fact["reason"]
    assert fact["passing"]


def test_rgb_dicom(tmp_path):
    colour = np.zeros((48, 64, 3), np.uint8)
    colour[..., 0] = 200
    file = write_dicom(tmp_path / "x.dcm", colour, bits=8, photometric="RGB")
    assert load_image(file, ImageParams(size_px=32, channels=3))[5, 5].tolist() == [200, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"NumberOfFrames": "2", "PixelData": b"\0" * 4 * 48 * 64}, "2 frames"),
        ({"PixelData": b"\0" * 100}, "does not decode"),
        ({"Rows": None}, "does not decode"),
    ],
)
def test_dicom_that_gives_no_picture_says_why(tmp_path, change, words):
    file = write_dicom(tmp_path / "x.dcm", RAMP, **change)
    with pytest.raises(ImageFileError, match=words):
        decode(file.read_bytes())


def test_dicom_without_pixels_and_a_cut_one(tmp_path):
    file = write_dicom(tmp_path / "x.dcm", RAMP)
    with pytest.raises(ImageFileError, match="DICOM"):
        decode(file.read_bytes()[:3000])
    with pytest.raises(ImageFileError, match="DICOM without pixels"):
        decode(file.read_bytes()[: file.read_bytes().index(b"\xe0\x7f\x10\x00")])


# --- files of every kind


def jpeg(tmp_path, **options):
    return save_image(tmp_path / "made.jpeg", 100 + RAMP, **options).read_bytes()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("empty", "empty file"),
        ("truncated", "does not decode"),
        ("animated", r"animated \(3 frames\)"),
        ("gif", "not a JPEG, PNG or DICOM image: begins with b'GIF8"),
        ("html", "not a JPEG, PNG or DICOM image"),
        ("bomb", "too many pixels"),
    ],
)
def test_files_that_cannot_be_used_are_named_with_the_reason(archive, tmp_path, what, reason):
    frames = [Image.fromarray((RAMP + n).astype(np.uint8)) for n in range(3)]
    made = io.BytesIO()
    if what == "animated":
        frames[0].save(made, "PNG", save_all=True, append_images=frames[1:])
    elif what == "gif":
        frames[0].save(made, "GIF")
    elif what == "bomb":
        Image.new("1", (20_000, 20_000)).save(made, "PNG")
    whole = jpeg(tmp_path)
    content = {"empty": b"", "truncated": whole[:-200], "html": b"<html>"}.get(what, made.getvalue())
    (archive / "train/NORMAL/IM-0900-0001.jpeg").write_bytes(content)
    manifest = read(archive, tmp_path / "cache")
    assert manifest.problems.path.tolist() == ["train/NORMAL/IM-0900-0001.jpeg"]
    assert pd.Series(manifest.problems.reason).str.contains(reason).all()
    assert len(manifest.table) == 4 * 32


def test_wrong_endings_are_read_by_content(archive, tmp_path):
    png = io.BytesIO()
    Image.fromarray((100 + RAMP).astype(np.uint8)).save(png, "PNG")
    (archive / "train/NORMAL/IM-0900-0001.jpeg").write_bytes(png.getvalue())
    (archive / "train/NORMAL/IM-0901-0001.png").write_bytes(jpeg(tmp_path))
    table = read(archive, tmp_path / "cache").table.set_index("group_id")
    assert table.loc["IM-900", "quantisation_sum"] == 0
    assert table.loc["IM-901", "quantisation_sum"] > 0
    assert table.loc[["IM-900", "IM-901"], "mean_intensity"].between(125, 138).all()


def test_quantisation_tells_the_jpeg_quality(archive, tmp_path):
    for number, quality in ((900, 95), (901, 75)):
        (archive / f"train/NORMAL/IM-0{number}-0001.jpeg").write_bytes(jpeg(tmp_path, quality=quality))
    sums = read(archive, tmp_path / "cache").table.set_index("group_id").quantisation_sum
    for number in (900, 901):
        with Image.open(archive / f"train/NORMAL/IM-0{number}-0001.jpeg") as image:
            assert sums[f"IM-{number}"] == sum(image.quantization[0])
    assert sums["IM-900"] < 400 < sums["IM-901"]


def test_transparency_shows_black(tmp_path):
    pixels = np.full((40, 40, 4), 255, np.uint8)
    pixels[:20, :, 3] = 0  # white, but fully transparent
    Image.fromarray(pixels).save(tmp_path / "x.png")
    seen = grey(tmp_path / "x.png")
    assert (seen[:20] == 0).all()
    assert (seen[20:] == 255).all()


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_grey_is_scaled_by_the_bits_it_uses(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (48, 1))).save(tmp_path / "x.png")
    decoded = decode((tmp_path / "x.png").read_bytes())
    assert (decoded.pixel_min, decoded.pixel_max) == (0, 2**bits - 1)
    np.testing.assert_allclose(grey(tmp_path / "x.png")[0], ramp / 2 ** (bits - 8), atol=1)


def test_deep_colour_is_refused_by_name(tmp_path):
    # Pillow writes no such file: the header of an 8-bit one is changed to 16 bits.
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "x.png")
    raw = bytearray((tmp_path / "x.png").read_bytes())
    raw[24] = 16
    raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageFileError, match="16 bits in colour"):
        decode(bytes(raw))


def test_width_and_height_stay_theirs_when_nearly_equal(tmp_path):
    file = save_image(tmp_path / "x.jpeg", np.zeros((1599, 1600)))
    decoded = decode(file.read_bytes(), at_least_px=100)
    assert (decoded.width_px, decoded.height_px) == (1600, 1599)
    assert decoded.image.width < 400


def test_what_may_pass_is_asked_about_again(archive, tmp_path):
    link = archive / "train/NORMAL/IM-0900-0001.jpeg"
    whole = (archive / "train/NORMAL/IM-0001-0001.jpeg").read_bytes()
    link.symlink_to(tmp_path / "elsewhere.jpeg")
    assert len(read(archive, tmp_path / "cache").problems) == 1
    (tmp_path / "elsewhere.jpeg").write_bytes(whole)
    assert read(archive, tmp_path / "cache").problems.empty


def test_a_copy_in_another_format_has_the_same_pixels(tmp_path):
    file = save_image(tmp_path / "x.jpeg", np.random.default_rng(0).integers(0, 255, (96, 128)))
    Image.open(file).save(tmp_path / "x.png")
    one, other = describe_file(file), describe_file(tmp_path / "x.png")
    assert one["pixel_hash"] == other["pixel_hash"]
    assert one["sha256"] != other["sha256"]


def test_a_turned_photograph_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray((3 * RAMP).astype(np.uint8)).save(tmp_path / "x.jpeg", exif=exif)
    decoded = decode((tmp_path / "x.jpeg").read_bytes())
    assert (decoded.width_px, decoded.height_px) == decoded.image.size == (48, 64)
    assert grey(tmp_path / "x.jpeg")[0].mean() < 10 < 150 < grey(tmp_path / "x.jpeg")[-1].mean()


def test_links_that_lead_in_circles(archive, tmp_path):
    folder = archive / "train/NORMAL"
    (folder / "IM-0900-0001.jpeg").symlink_to("IM-0901-0001.jpeg")
    (folder / "IM-0901-0001.jpeg").symlink_to("IM-0900-0001.jpeg")
    (folder / "round").symlink_to(archive, target_is_directory=True)
    (archive / "again").symlink_to(archive, target_is_directory=True)
    problems = read(archive, tmp_path / "cache").problems
    assert problems.path.tolist() == [f"train/NORMAL/{n}" for n in ("IM-0900-0001.jpeg", "IM-0901-0001.jpeg", "round")]
    assert problems.reason[:2].str.contains("symbolic links").all()
    (archive / "loop").symlink_to("loop")
    with pytest.raises(ManifestError, match="is not a folder"):
        read(archive / "loop", tmp_path / "cache")


def test_unreadable_files_and_folders(archive):
    """In a process without root's rights, which would read everything."""
    program = textwrap.dedent("""
        import os, pathlib, sys
        from pneumolib.data.manifest import read_manifest
        from pneumolib.params import DataParams
        root, params = pathlib.Path(sys.argv[1]), DataParams(root=sys.argv[1])
        read_manifest(params, root / "cache1")  # so that everything is imported while it may be
        (root / "train/NORMAL/IM-0001-0001.jpeg").chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)
        print(read_manifest(params, root / "cache2").problems.to_csv(index=False))
        (root / "test/NORMAL").chmod(0)
        read_manifest(params, root / "cache2")
    """)
    with tempfile.TemporaryDirectory() as open_to_all:
        shutil.copytree(archive, open_to_all, dirs_exist_ok=True)
        for place in [Path(open_to_all), *Path(open_to_all).rglob("*")]:
            place.chmod(0o777)
            if os.geteuid() == 0:
                os.chown(place, 65534, 65534)
        done = subprocess.run([sys.executable, "-c", program, open_to_all], capture_output=True, text=True)
        (Path(open_to_all) / "test/NORMAL").chmod(0o777)
    assert "train/NORMAL/IM-0001-0001.jpeg,cannot be read: Permission denied" in done.stdout, done.stderr
    assert "test/NORMAL: cannot be listed: Permission denied" in done.stderr


# --- the revised Kaggle split


def test_normal_and_opacity_are_the_classes_of_the_revised_split(archive, tmp_path):
    before = read(archive, tmp_path / "cache").table
    for split in ("train", "val", "test"):
        (archive / split / "NORMAL").rename(archive / split / "Normal")
        (archive / split / "PNEUMONIA").rename(archive / split / "Opacity")
    after = read(archive, tmp_path / "cache").table
    renamed = before.image_id.str.replace("NORMAL/", "Normal/").str.replace("PNEUMONIA", "Opacity")
    assert after.image_id.tolist() == sorted(renamed)
    compared = ["label", "kind", "group_id", "sha256"]
    pd.testing.assert_frame_equal(
        after.sort_values("sha256")[compared].reset_index(drop=True),
        before.sort_values("sha256")[compared].reset_index(drop=True),
    )
    (archive / "train/PNEUMONIA").mkdir()
    with pytest.raises(ManifestError, match="holds Opacity and PNEUMONIA, both names for one class"):
        read(archive, tmp_path / "cache")


# --- TFRecord


def records_of(archive, folder):
    """The archive as pairs of TFRecord files, val among train, as the Keras example publishes it."""
    for part, splits in (("train", ("train", "val")), ("test", ("test",))):
        files = sorted(f for split in splits for f in (archive / split).rglob("*.jpeg"))
        write_pair(folder, part, {f.relative_to(archive).as_posix(): f.read_bytes() for f in files})
    return folder


def test_tfrecord_pairs_give_the_same_manifest(archive, tmp_path, project, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(project.root))
    folder = records_of(archive, tmp_path / "records")
    from_folder = read(archive, tmp_path / "cache")
    from_records = read(folder, tmp_path / "cache", source="tfrecord")
    pd.testing.assert_frame_equal(from_records.table, from_folder.table)
    assert from_records.fingerprint == from_folder.fingerprint
    with pytest.raises(ManifestError, match=r"set data\.source: tfrecord"):
        read(folder, tmp_path / "cache")
    (folder / "train/images.tfrec").write_bytes(b"x" * 40)
    with pytest.raises(ManifestError, match=r"train/images\.tfrec: record 1"):
        read(folder, tmp_path / "cache", source="tfrecord")
    with pytest.raises(ManifestError, match=r"looked for pairs of images\.tfrec"):
        read(tmp_path / "nowhere", tmp_path / "cache", source="tfrecord")


# --- CSV


@pytest.fixture
def table_of_paths(tmp_path):
    """PNG, JPEG and DICOM in one table, with names that hold spaces and letters of other alphabets."""
    folder, rows = tmp_path / "fälle 2026", []
    for number in range(8):
        for label in (0, 1):
            level = (60 + 120 * label + RAMP).astype(np.uint8)
            name = [f"bild {number} é {label}.png", f"снимок {number} {label}.jpeg", f"胸部 {number} {label}.dcm"][
                number % 3
            ]
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


def test_a_table_may_name_hospitals(table_of_paths, tmp_path):
    file, table = table_of_paths
    plain = read(file, tmp_path / "cache", source="csv")
    assert (plain.table.site == "").all()
    table.assign(site=["north", "south"] * (len(table) // 2)).to_csv(file, index=False)
    named = read(file, tmp_path / "cache", source="csv")
    assert set(named.table.site) == {"north", "south"}
    assert named.fingerprint != plain.fingerprint


def test_faults_of_a_table_are_told_by_line(table_of_paths, tmp_path):
    file, table = table_of_paths
    table.loc[0, "label"], table.loc[1, "split"], table.loc[2, "group_id"] = "maybe", "training", ""
    table.loc[3, "path"] = table.path[4]
    table.to_csv(file, index=False)
    with pytest.raises(ManifestError) as caught:
        read(file, tmp_path / "cache", source="csv")
    for words in (
        "line 2: label 'maybe' is none of 0, 1, normal",
        "line 3: split 'training' is none of train, val, test",
        "line 4: group_id '' is empty",
        "line 6: path",
        "4 fault(s)",
    ):
        assert words in str(caught.value)


def test_odd_tables_are_read_or_refused_in_words(table_of_paths, tmp_path):
    file, table = table_of_paths
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    before = read(file, tmp_path / "cache", source="csv").fingerprint
    file.write_text("\ufeff" + "\r\n".join([lines[0], "", *lines[1:]]) + "\r\n", encoding="utf-8", newline="")
    assert read(file, tmp_path / "cache", source="csv").fingerprint == before
    file.write_text("\n".join([lines[0], "", *lines[1:], lines[1].replace("bild", "./bild")]), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"line 19: path '\./bild .* stands in an earlier line too"):
        read(file, tmp_path / "cache", source="csv")
    file.write_text(text.replace(lines[1], lines[1].replace("bild", "bi\0ld")), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"line 2: path .* holds a control character"):
        read(file, tmp_path / "cache", source="csv")
    table.assign(group_id=table.group_id.replace("p4-1", "p0-1")).to_csv(file, index=False)
    with pytest.raises(
        ManifestError, match=r"1 group\(s\) stand in test and in training .*\n  p0-1: line 3 and, in test, line 11"
    ):
        read(file, tmp_path / "cache", source="csv")
    table.assign(kind="virus").to_csv(file, index=False)
    with pytest.raises(ManifestError, match="line 2: kind 'virus' contradicts the label"):
        read(file, tmp_path / "cache", source="csv")
    file.write_text(text.replace(",", ";"), encoding="utf-8")
    with pytest.raises(ManifestError, match="not separated by commas"):
        read(file, tmp_path / "cache", source="csv")
    with pytest.raises(ManifestError, match=r"is a file; for a table of paths set data\.source: csv"):
        read(file, tmp_path / "cache")
    with pytest.raises(ManifestError, match=r"is no whole \.npz file"):
        read(file, tmp_path / "cache", source="npz")
    table.assign(split="val").to_csv(file, index=False)
    with pytest.raises(ManifestError, match="all its rows are val"):
        read(file, tmp_path / "cache", source="csv", val_folder="leave_out")
    table[(table.split != "test") | (table.label == "1")].to_csv(file, index=False)
    with pytest.raises(ManifestError, match=r"no usable image in test/NORMAL.*None is named there"):
        read(file, tmp_path / "cache", source="csv")


def test_a_table_without_patients_is_refused(table_of_paths, tmp_path):
    file, table = table_of_paths
    table.drop(columns="group_id").to_csv(file, index=False)
    with pytest.raises(
        ManifestError, match=r"missing column.*group_id.*nobody can tell which images are of one patient"
    ):
        read(file, tmp_path / "cache", source="csv")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not a CSV table in UTF-8"):
        read(file, tmp_path / "cache", source="csv")


def test_a_file_that_the_table_names_and_nobody_finds(table_of_paths, tmp_path):
    file, table = table_of_paths
    (file.parent / table.path[0]).unlink()
    manifest = read(file, tmp_path / "cache", source="csv")
    assert manifest.problems.to_dict("records") == [
        {"path": table.path[0], "reason": "cannot be read: No such file or directory"}
    ]


# --- npz


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 12), ("val", 4), ("test", 6)):
        labels = np.arange(n)[:, None] % 2
        arrays[f"{split}_images"] = (40 + 150 * labels[..., None] + rng.integers(0, 20, (n, 28, 28))).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    file = tmp_path / "pneumoniamnist.npz"
    np.savez(file, **arrays)
    return file, arrays


def test_npz_gives_the_same_manifest(npz, tmp_path, project, monkeypatch, capsys):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(project.root))
    file, arrays = npz
    manifest = read(file, tmp_path / "cache", source="npz")
    assert len(manifest.table) == 22
    assert manifest.table.group_id.is_unique
    assert "names no patients" in capsys.readouterr().err
    for row in manifest.table.itertuples():
        split, number = row.source_split, int(row.image_id.split("/")[2].removesuffix(".png"))
        np.testing.assert_array_equal(
            np.asarray(Image.open(manifest.root / row.path)), arrays[f"{split}_images"][number]
        )
        assert row.label == arrays[f"{split}_labels"][number, 0]


def test_labels_of_another_number_type_are_read(npz, tmp_path, project, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(project.root))
    file, arrays = npz
    before = read(file, tmp_path / "cache", source="npz").fingerprint
    np.savez(
        file,
        **(arrays | {"train_labels": arrays["train_labels"].astype(float), "val_labels": arrays["val_labels"] > 0}),
    )
    assert read(file, tmp_path / "cache", source="npz").fingerprint == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_images": np.zeros((6, 0, 28), np.uint8)}, r"test_images: expected uint8"),
        ({"test_labels": None}, "missing test_labels"),
        ({"train_labels": np.full(12, 3)}, r"train_labels: expected 12 values of 0 or 1"),
        ({"train_images": np.zeros((12, 28, 28), np.float32)}, r"train_images: expected uint8"),
    ],
)
def test_npz_of_another_form_is_refused(npz, tmp_path, project, monkeypatch, change, words):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(project.root))
    file, arrays = npz
    np.savez(file, **{name: value for name, value in (arrays | change).items() if value is not None})
    with pytest.raises(ManifestError, match=words):
        read(file, tmp_path / "cache", source="npz")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ManifestError, match=r"no whole \.npz file"):
        read(file, tmp_path / "cache", source="npz")
