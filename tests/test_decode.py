"""Files of every kind to pixels: DICOM as a workstation shows it, JPEG and PNG; broken files by name, whatever broke."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
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
from pneumolib.data.decode import decode, read_header
from pneumolib.data.images import load_image
from pneumolib.data.manifest import describe_file
from pneumolib.errors import ImageFileError
from pneumolib.params import ImageParams

RAMP = np.tile(np.arange(64), (48, 1))  # dark on the left, bright on the right
X = np.arange(64)
SPREAD = X * 255 / 63


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


def steps():
    """A lookup table of 64 values: black up to the middle, white from there."""
    table = Dataset()
    table.LUTDescriptor, table.LUTExplanation = [64, 0, 16], "steps"
    table.LUTData = ((X >= 32) * 65535).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    return table


RESCALED = {"RescaleSlope": "10", "RescaleIntercept": "-1000", "RescaleType": "US", "VOILUTFunction": "LINEAR_EXACT"}


@pytest.mark.parametrize(
    ("stored", "options", "row"),
    [
        (1000 + 10 * RAMP, {}, SPREAD),  # from the lowest to the highest value
        (50 + RAMP, {"bits": 8}, 50 + X),
        (RAMP, {"bits": 6}, SPREAD),
        (RAMP, {"photometric": "MONOCHROME1"}, 255 - SPREAD),
        # Stored 0 to 63 become -1000 to -370; the first window runs from -800 to -600, that is from column 20 to 40.
        (RAMP, {**RESCALED, "WindowCenter": ["-700", "0"], "WindowWidth": ["200", "10"]}, (255 * (X - 20) / 20).clip(0, 255)),
        (RAMP, {"VOILUTSequence": [steps()]}, 255 * (X >= 32)),
        (RAMP, {"RescaleSlope": "-1", "RescaleIntercept": "0"}, 255 - SPREAD),
        (RAMP, {"RescaleSlope": "-1", "RescaleIntercept": "0", "bits": 8}, 255 - X),
        # Elements that are empty or void count as absent.
        (1000 + 10 * RAMP, {"WindowCenter": "", "WindowWidth": "", "PixelPaddingValue": None}, SPREAD),
        (1000 + 10 * RAMP, {"WindowCenter": "500", "WindowWidth": "0"}, SPREAD),
        (1000 + 10 * RAMP, {"RescaleSlope": "", "RescaleIntercept": "", "VOILUTSequence": []}, SPREAD),
    ],
)  # fmt: skip
def test_dicom_is_shown_as_a_workstation_shows_it(tmp_path, stored, options, row):
    file = write_dicom(tmp_path / "x.dcm", stored, **options)
    np.testing.assert_allclose(grey(file), np.tile(row, (48, 1)), atol=1)
    decoded = decode(file.read_bytes())
    assert (decoded.pixel_min, decoded.pixel_max) == (stored.min(), stored.max())
    assert decoded.mode == f"DICOM {options.get('photometric', 'MONOCHROME2')} {options.get('bits', 12)} bit"


@pytest.mark.parametrize("bits", [8, 12])
def test_windows_are_spread_over_the_whole_range_and_a_negative_slope_turns_them_over(tmp_path, bits):
    scale = 60 if bits == 12 else 1
    window = {"WindowCenter": f"{32 * scale}", "WindowWidth": f"{7 * scale}", "VOILUTFunction": "SIGMOID"}
    row = grey(write_dicom(tmp_path / "x.dcm", RAMP * scale, bits=bits, **window))[0]
    assert (row[0], row[-1]) == (0, 255)
    assert (np.diff(row) >= 0).all()
    window = {"WindowCenter": "-32", "WindowWidth": "64", "RescaleSlope": "-1", "RescaleIntercept": "0"}
    row = grey(write_dicom(tmp_path / "x.dcm", RAMP, bits=bits, **window))[0]
    assert (np.diff(row) <= 0).all()
    assert row[0] - row[-1] > 240


def test_padding_stays_black(tmp_path):
    stored = 100 + RAMP
    stored[:8] = 0
    seen = grey(write_dicom(tmp_path / "x.dcm", stored, photometric="MONOCHROME1", PixelPaddingValue=0))
    assert (seen[:8] == 0).all()
    np.testing.assert_allclose(seen[20], 255 - SPREAD, atol=1)


def test_colours_of_dicom(tmp_path):
    inverted = (65535 - X * 1024).astype("<u2").tobytes()
    colours = {f"{name}PaletteColorLookupTable{part}": value for name in ("Red", "Green", "Blue")
               for part, value in (("Descriptor", [64, 0, 16]), ("Data", inverted))}  # fmt: skip
    row = grey(write_dicom(tmp_path / "x.dcm", RAMP, bits=8, photometric="PALETTE COLOR", **colours))[0]
    assert row[0] >= 254
    assert (np.diff(row) < 0).all()
    red = write_dicom(tmp_path / "y.dcm", np.full((48, 64, 3), (200, 0, 0)), bits=8, photometric="RGB")
    assert load_image(red, ImageParams(size_px=32, channels=3))[5, 5].tolist() == [200, 0, 0]


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


def encoded(form: str, pixels=100 + RAMP, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, form, **options)
    return file.getvalue()


def claiming(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG of less than a hundred bytes whose head names any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b"")]  # fmt: skip
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty file"),
        (b"<html>", "not a JPEG, PNG or DICOM image: begins with b'<html>'"),
        (encoded("GIF"), "not a JPEG, PNG or DICOM image: begins with b'GIF8"),
        (encoded("JPEG")[:-200], "does not decode"),
        (encoded("PNG", save_all=True, append_images=[Image.new("L", (64, 48))] * 2), r"animated \(3 frames\)"),
        (claiming(20_000, 20_000), "too many pixels"),
        (claiming(12_000, 10_000), "too many pixels"),  # Pillow only warns of it
        (claiming(4, 4, bits=16, colour=2), "16 bits in colour"),
    ],
)
def test_pictures_that_cannot_be_used_say_why(raw, reason):
    with pytest.raises(ImageFileError, match=reason):
        decode(raw)


@pytest.mark.parametrize(
    ("change", "end", "words"),
    [
        ({"NumberOfFrames": "2", "PixelData": b"\0" * 4 * 48 * 64}, None, "2 frames"),
        ({"PixelData": b"\0" * 100}, None, "does not decode"),
        ({"Rows": None}, None, "does not decode"),
        ({}, 3000, "DICOM"),
        ({}, b"\xe0\x7f\x10\x00", "DICOM without pixels"),
    ],
)
def test_dicom_that_gives_no_picture_says_why(tmp_path, change, end, words):
    raw = write_dicom(tmp_path / "x.dcm", RAMP, **change).read_bytes()
    with pytest.raises(ImageFileError, match=words):
        decode(raw[: raw.index(end) if isinstance(end, bytes) else end])


def small_dicom() -> bytes:
    file = io.BytesIO()
    dataset = Dataset()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 6, 8, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PhotometricInterpretation, dataset.PixelPaddingValue, dataset.RescaleSlope = "MONOCHROME1", 3, "2"
    dataset.WindowCenter, dataset.WindowWidth, dataset.PixelData = "30", "20", bytes(range(48))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation], TURNED[ExifTags.Base.XResolution] = 6, 72.0
NOISE = np.random.default_rng(7).integers(0, 256, (24, 20))
SMALL = {"JPEG": encoded("JPEG", NOISE, exif=TURNED), "PNG": encoded("PNG", NOISE, exif=TURNED), "DICOM": small_dicom()}


@settings(deadline=None, max_examples=200)
@given(
    form=st.sampled_from(sorted(SMALL)),
    changes=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), max_size=8),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_changed_bytes_give_an_image_or_an_image_file_error(form, changes, keep):
    """Nothing else: any other error would stop all other files too."""
    raw = bytearray(SMALL[form])
    for place, value in changes:
        raw[place % len(raw)] = value
    raw, found = bytes(raw[: round(keep * len(raw))]), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for read in (decode, read_header):
            with contextlib.suppress(ImageFileError):
                found[read] = read(raw)
    if decoded := found.get(decode):
        assert decoded.image.mode in ("L", "RGB")
        assert decoded.image.size == (decoded.width_px, decoded.height_px)
        header = found[read_header]  # what can be decoded has a header
        assert sorted((header.width_px, header.height_px, header.frames)) == sorted((*decoded.image.size, 1))
    if not changes and keep == 1:
        assert len(found) == 2


def test_facts_of_a_file_follow_its_content_and_not_its_ending(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128))
    for name, form, options in (
        ("a.jpeg", "JPEG", {"quality": 95}),
        ("b.png", "JPEG", {"quality": 75}),
        ("c.jpeg", "PNG", {}),
    ):
        (tmp_path / name).write_bytes(encoded(form, pixels, **options))
    Image.open(tmp_path / "a.jpeg").save(tmp_path / "d.png")
    good, poor, exact, copy = (describe_file(file) for file in sorted(tmp_path.iterdir()))
    assert 0 < good["quantisation_sum"] < 400 < poor["quantisation_sum"]
    with Image.open(tmp_path / "b.png") as image:
        assert poor["quantisation_sum"] == sum(image.quantization[0])
    assert exact["quantisation_sum"] == 0
    assert exact["mean_intensity"] == round(pixels.mean(), 3)
    assert good["pixel_hash"] == copy["pixel_hash"] != exact["pixel_hash"]
    assert good["sha256"] != copy["sha256"]


def test_transparency_shows_black_and_a_turned_photograph_is_turned_back(tmp_path):
    pixels = np.full((40, 40, 4), 255, np.uint8)
    pixels[:20, :, 3] = 0  # white, but fully transparent
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(grey(tmp_path / "x.png"), 255 * (np.arange(40) >= 20)[:, None] * np.ones((1, 40)))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # to be shown turned by 90 degrees
    Image.fromarray((3 * RAMP).astype(np.uint8)).save(tmp_path / "x.jpeg", exif=turned)
    decoded = decode((tmp_path / "x.jpeg").read_bytes())
    assert (decoded.width_px, decoded.height_px) == decoded.image.size == (48, 64)
    assert grey(tmp_path / "x.jpeg")[0].mean() < 10 < 150 < grey(tmp_path / "x.jpeg")[-1].mean()


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_grey_is_scaled_by_the_bits_it_uses(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (48, 1))).save(tmp_path / "x.png")
    decoded = decode((tmp_path / "x.png").read_bytes())
    assert (decoded.pixel_min, decoded.pixel_max) == (0, 2**bits - 1)
    np.testing.assert_allclose(grey(tmp_path / "x.png")[0], ramp / 2 ** (bits - 8), atol=1)


def test_width_and_height_stay_theirs_when_nearly_equal(tmp_path):
    file = save_image(tmp_path / "x.jpeg", np.zeros((1599, 1600)))
    decoded = decode(file.read_bytes(), at_least_px=100)
    assert (decoded.width_px, decoded.height_px) == (1600, 1599)
    assert decoded.image.width < 400
