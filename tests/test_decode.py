"""Files of every kind to pixels: DICOM as a workstation shows it, JPEG and PNG; broken files by name, whatever broke."""

import contextlib
import io
import os
import struct
import warnings
import zlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from pneumolib.data.decode import LIMITS, decode, opened
from pneumolib.data.manifest import describe_file
from pneumolib.data.pixels import load_image
from pneumolib.errors import ImageFileError
from pneumolib.params import DataParams, ImageParams

RAMP = np.tile(np.arange(64), (48, 1))  # dark on the left, bright on the right
X = np.arange(64)
SPREAD = X * 255 / 63


def dicom_bytes(stored, bits=12, photometric="MONOCHROME2", **elements):
    """A DICOM file of `stored`; further elements by keyword."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
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
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write_dicom(path, stored, *options, **elements):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(stored, *options, **elements))
    return path


def grey(raw):
    return np.asarray(decode(raw, grey=True).image).astype(int)


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
        (RAMP, {"RescaleSlope": "-1", "RescaleIntercept": "0", "WindowCenter": "-31", "WindowWidth": "64"}, 255 - SPREAD),
        # Elements that are empty or void count as absent.
        (1000 + 10 * RAMP, {"WindowCenter": "500", "WindowWidth": "0", "PixelPaddingValue": None}, SPREAD),
        (1000 + 10 * RAMP, {"RescaleSlope": "", "RescaleIntercept": "", "VOILUTSequence": []}, SPREAD),
    ],
)  # fmt: skip
def test_dicom_is_shown_as_a_workstation_shows_it(stored, options, row):
    raw = dicom_bytes(stored, **options)
    np.testing.assert_allclose(grey(raw), np.tile(row, (48, 1)), atol=1)
    decoded = decode(raw)
    assert decoded.mode == f"DICOM {options.get('photometric', 'MONOCHROME2')} {options.get('bits', 12)} bit"


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (12, 60)])
def test_windows_are_spread_over_the_whole_range(bits, scale):
    window = {"WindowCenter": f"{32 * scale}", "WindowWidth": f"{7 * scale}", "VOILUTFunction": "SIGMOID"}
    row = grey(dicom_bytes(RAMP * scale, bits, **window))[0]
    assert (row[0], row[-1]) == (0, 255)
    assert (np.diff(row) >= 0).all()


def test_padding_stays_black():
    stored = 100 + RAMP
    stored[:8] = 0
    seen = grey(dicom_bytes(stored, photometric="MONOCHROME1", PixelPaddingValue=0))
    assert (seen[:8] == 0).all()
    np.testing.assert_allclose(seen[20], 255 - SPREAD, atol=1)


def test_colours_of_dicom():
    inverted = (65535 - X * 1024).astype("<u2").tobytes()
    colours = {f"{name}PaletteColorLookupTable{part}": value for name in ("Red", "Green", "Blue")
               for part, value in (("Descriptor", [64, 0, 16]), ("Data", inverted))}  # fmt: skip
    row = grey(dicom_bytes(RAMP, 8, "PALETTE COLOR", **colours))[0]
    assert row[0] >= 254
    assert (np.diff(row) < 0).all()
    red = dicom_bytes(np.full((48, 64, 3), (200, 0, 0)), 8, "RGB")
    assert load_image(red, ImageParams(size_px=32, channels=3))[5, 5].tolist() == [200, 0, 0]


def test_a_compression_without_decoder_is_named(tmp_path):
    file = write_dicom(tmp_path / "x.dcm", RAMP)
    dataset = dcmread(file)
    dataset.PixelData = encapsulate([b"\xff\x4f" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(file)
    fact = describe_file(file)
    assert "JPEG-LS" in fact["reason"]
    assert "pip install python-gdcm" in fact["reason"]


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
        (b"<html>", "not a JPEG, PNG or DICOM image"),
        (encoded("GIF"), "not a JPEG, PNG or DICOM image"),
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
        ({"Rows": None}, None, "without rows and columns"),
        ({}, 3000, "DICOM"),
        ({}, b"\xe0\x7f\x10\x00", "DICOM without pixels"),
    ],
)
def test_dicom_that_gives_no_picture_says_why(change, end, words):
    raw = dicom_bytes(RAMP, **change)
    with pytest.raises(ImageFileError, match=words):
        decode(raw[: raw.index(end) if isinstance(end, bytes) else end])


TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation], TURNED[ExifTags.Base.XResolution] = 6, 72.0
NOISE = np.random.default_rng(7).integers(0, 256, (24, 20))
SMALL = {"JPEG": encoded("JPEG", NOISE, exif=TURNED), "PNG": encoded("PNG", NOISE, exif=TURNED), "DICOM": dicom_bytes(NOISE, bits=8, photometric="MONOCHROME1", PixelPaddingValue=3, RescaleSlope="2", WindowCenter="30", WindowWidth="20")}  # fmt: skip


def header(raw, limits=LIMITS):
    with opened(raw, limits):
        pass


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
        for read in (decode, header):
            with contextlib.suppress(ImageFileError):
                found[read] = read(raw)
        if decoded := found.get(decode):
            assert decoded.image.mode in ("L", "RGB")
            assert decoded.image.size == (decoded.width_px, decoded.height_px)
            assert header in found  # what can be decoded has a header, and its size is that of the picture
            exact = decoded.width_px * decoded.height_px / 10**6
            header(raw, DataParams(max_megapixels=exact))
            with pytest.raises(ImageFileError, match="max_megapixels"):
                header(raw, DataParams(max_megapixels=exact * (1 - 1e-9)))
    if not changes and keep == 1:
        assert len(found) == 2


def test_facts_of_a_file_follow_its_content_and_not_its_ending(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128))
    (tmp_path / "a.jpeg").write_bytes(encoded("JPEG", pixels, quality=95))
    (tmp_path / "b.png").write_bytes(encoded("JPEG", pixels, quality=75))
    (tmp_path / "c.jpeg").write_bytes(encoded("PNG", pixels))
    Image.open(tmp_path / "a.jpeg").save(tmp_path / "d.png")
    good, poor, exact, copy = (describe_file(file) for file in sorted(tmp_path.iterdir()))
    assert 0 < good["quantisation_sum"] < 400 < poor["quantisation_sum"]
    assert (exact["quantisation_sum"], exact["mean_intensity"]) == (0, round(pixels.mean(), 3))
    assert good["pixel_hash"] == copy["pixel_hash"] != exact["pixel_hash"]
    assert good["sha256"] != copy["sha256"]


def test_transparency_shows_black_and_a_turned_photograph_is_turned_back():
    pixels = np.full((40, 40, 4), 255)
    pixels[:20, :, 3] = 0  # white, but fully transparent
    np.testing.assert_array_equal(grey(encoded("PNG", pixels)), np.repeat([0, 255], 20)[:, None] * np.ones((1, 40)))
    raw = encoded("JPEG", 3 * RAMP, exif=TURNED)
    decoded = decode(raw)
    assert (decoded.width_px, decoded.height_px) == decoded.image.size == (48, 64)
    assert grey(raw)[0].mean() < 10 < 150 < grey(raw)[-1].mean()
    reduced = decode(encoded("JPEG", np.zeros((1599, 1600))), at_least_px=100)
    assert (reduced.width_px, reduced.height_px, reduced.image.width < 400) == (1600, 1599, True)


def deep_png(values) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    bits=st.integers(9, 14),
    far=st.sampled_from([None, 0, 65535]),
    size=st.integers(8, 90),
    slope=st.sampled_from(["1", "-2"]),
)
def test_deep_grey_is_one_picture_in_png_and_dicom_and_an_outlier_changes_one_pixel(seed, bits, far, size, slope):
    values = 2**bits + np.random.default_rng(seed).integers(0, 2 ** (bits - 1), (size, size + 1))
    ends = np.delete(values.ravel(), 3).min(), np.delete(values.ravel(), 3).max()
    values[0, 3] = values[0, 4] if far is None else far
    shown = grey(deep_png(values))
    np.testing.assert_allclose(shown, ((values - ends[0]) / np.ptp(ends)).clip(0, 1) * 255, atol=0.51)
    turned = {} if slope == "1" else {"RescaleSlope": slope, "RescaleIntercept": "7"}
    same = grey(dicom_bytes(values, bits=16, **turned))
    np.testing.assert_allclose(same if slope == "1" else 255 - same, shown, atol=slope != "1")


def test_a_few_bright_pixels_on_an_even_ground_are_seen():
    values = np.full((48, 64), 300)
    values[5, 5] = 900
    assert grey(deep_png(np.repeat(values, 30, 1)))[5, 148:152].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("at_least_px", [None, 32])
@pytest.mark.parametrize("saved", [{}, {"progressive": True}, {"progressive": True, "restart_marker_rows": 1}])
def test_a_jpeg_that_was_cut_and_closed_again_is_refused(share, at_least_px, saved):
    whole = encoded("JPEG", np.random.default_rng(0).integers(0, 256, (300, 400)), **saved)
    decode(whole + b"after the end \xff\xd9", at_least_px)
    with pytest.raises(ImageFileError, match="truncated"):
        decode(whole[: int(len(whole) * share)] + b"\xff\xd9", at_least_px)


def test_too_many_pixels_are_refused_before_decoding():
    for side, said in ((9000, "9000 x 9000 pixels"), (20_000, "too many pixels")):  # Pillow itself refuses the second
        with pytest.raises(ImageFileError, match=f"{said}; data.max_megapixels allows 30 million"):
            decode(claiming(side, side, bits=16))
    small = DataParams(max_megapixels=0.001)
    for raw in (encoded("PNG"), encoded("JPEG"), dicom_bytes(RAMP)):
        with pytest.raises(ImageFileError, match=r"64 x 48 pixels; data\.max_megapixels allows 0\.001 million"):
            decode(raw, limits=small)


def test_rows_named_again_behind_the_pixels_are_checked():
    again = dicom_bytes(RAMP) + b"(\0\x10\0US\x02\0\x00\x7f"
    with pytest.raises(ImageFileError, match=r"64 x 32512 pixels; data\.max_megapixels allows 0\.01 million"):
        decode(again, limits=DataParams(max_megapixels=0.01))


@pytest.mark.parametrize(
    ("kind", "said"), [(b"IS", ""), (b"LO", "without rows and columns"), (b"OB", "without rows and")]
)
def test_a_size_that_is_text_is_refused(kind, said):
    raw, own = dicom_bytes(RAMP), b"(\0\x11\0US\x02\0\x40\0"
    length = b"\0\0\x02\0\0\0" if kind == b"OB" else b"\x02\0"
    assert raw.count(own) == 1
    with pytest.raises(ImageFileError, match=said) if said else contextlib.nullcontext():
        decode(raw.replace(own, b"(\0\x11\0" + kind + length + b"64"))


def test_a_pipe_and_a_large_file_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in describe_file(tmp_path / "pipe.png")["reason"]
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(65 * 2**20)
    assert describe_file(tmp_path / "large.png")["reason"] == "65.0 MB; data.max_file_mb allows 64 MB"
    taken = describe_file(tmp_path / "large.png", DataParams(max_file_mb=66))
    assert taken["reason"] == "not a JPEG, PNG or DICOM image"


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("overlay", [None, 0, 15])
def test_dicom_values_above_the_stored_bits_are_named(signed, packed, overlay):
    dataset = dcmread(io.BytesIO(dicom_bytes((RAMP * 100).astype(np.uint16), bits=16, PixelRepresentation=signed)))
    if packed:
        dataset.compress(RLELossless)
    if overlay is not None:
        dataset.add_new(
            (0x6000, 0x0102), "US", overlay
        )  # the bit that holds the overlay; 0 where it has data of its own
    for bits, named in ((12, overlay != 15), (13, False)):
        dataset.BitsStored, dataset.HighBit, file = bits, bits - 1, io.BytesIO()
        dataset.save_as(file)
        with pytest.raises(ImageFileError, match="above its BitsStored") if named else contextlib.nullcontext():
            decode(file.getvalue())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_in_dicom_that_was_cut_and_closed_is_refused(share, progressive):
    whole = encoded("JPEG", np.random.default_rng(0).integers(0, 256, (48, 64)), progressive=progressive)
    assert grey(compressed(whole, JPEGBaseline8Bit)).shape == (48, 64)
    with pytest.raises(ImageFileError, match="truncated"):
        decode(compressed(whole[: int(share * len(whole))] + b"\xff\xd9", JPEGBaseline8Bit))


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("preamble", [b"", b"\0" * 128 + b"DICM"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_dicom_without_preamble_or_file_meta_is_the_same_picture(meta, preamble, syntax):
    whole, file = dcmread(io.BytesIO(dicom_bytes(100 + 10 * RAMP))), DicomBytesIO(preamble)
    file.seek(0, os.SEEK_END)
    if meta:
        whole.file_meta.TransferSyntaxUID = syntax
        write_file_meta_info(file, whole.file_meta)
    if not syntax.is_little_endian:
        whole.PixelData = np.frombuffer(whole.PixelData, "<u2").astype(">u2").tobytes()
    file.is_implicit_VR, file.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(file, Dataset({element.tag: element for element in whole}))
    decoded = decode(file.getvalue())
    assert decoded.mode == "DICOM MONOCHROME2 12 bit"
    np.testing.assert_allclose(np.asarray(decoded.image)[7], SPREAD, atol=0.51)


@settings(deadline=None, max_examples=100)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\x08\0\x05\0CS", b"\x02\0\0\0UL\4\0", b"\x08\0\x16\0\x1a\0\0\0"])
)
@pytest.mark.filterwarnings("ignore")  # pydicom's of what it stumbles over
def test_what_is_no_dicom_is_refused_whatever_it_begins_with(body, start):
    with pytest.raises(ImageFileError, match=r"empty|not a JPEG, PNG or DICOM|begins as|DICOM (whose|with)"):
        decode(start + body)


def rle(*segments: bytes) -> bytes:
    places = np.cumsum([64, *map(len, segments)])[:-1]
    return struct.pack("<16L", len(segments), *places, *[0] * (15 - len(segments))) + b"".join(segments)


def compressed(frame: bytes, syntax, rows=48, columns=64, bits=8, second: bytes = b"") -> bytes:
    """A DICOM file of a compressed frame; its table of offsets leads to a `second` one, if any."""
    dataset, file = dcmread(io.BytesIO(dicom_bytes(np.zeros((rows, columns)), bits=bits))), io.BytesIO()
    frames = [frame, second] if second else [frame]
    dataset.file_meta.TransferSyntaxUID, dataset.PixelData = syntax, encapsulate(frames, has_bot=not second)
    if second:
        dataset.ExtendedOffsetTable = struct.pack("<Q", 8 + len(frame) + len(frame) % 2)
        dataset.ExtendedOffsetTableLengths = struct.pack("<Q", len(second))
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)
    return file.getvalue()


def test_compressed_dicom_is_read_and_refused_where_it_holds_more_than_its_header_says(monkeypatch):
    line = b"\x81\x40" * 24 + b"\x80" + b"\x3f" + bytes(range(64)) * 1
    good = b"\xc1\x40" * 47 + b"\x3f" + bytes(range(64))  # 47 rows of one value, and a ramp
    assert grey(compressed(rle(good), RLELossless))[-1].tolist() == [*range(64)]
    jpeg = encoded("JPEG", 3 * RAMP, quality=95)
    assert abs(grey(compressed(jpeg, JPEGBaseline8Bit)) - 3 * RAMP).max() < 9
    monkeypatch.setattr("pneumolib.data.dicom.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    wide = encoded("JPEG", np.zeros((4000, 5000)))
    for frame, syntax, said in (
        (rle(b"\x81\0" * 2_000_000), RLELossless, "more compressed pixels"),
        (rle(good, b"\x81\0" * 30), RLELossless, "more compressed pixels"),
        (rle(good + line), RLELossless, "more compressed pixels"),
        (wide, JPEGBaseline8Bit, "5000 x 4000 compressed pixels"),
    ):
        with pytest.raises(ImageFileError, match=f"^DICOM with .*{said}"):
            decode(compressed(frame, syntax))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n%%EOF\n"
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("pneumolib.data.dicom.pixel_array", mock.Mock(side_effect=RuntimeError("no JPEG")))
    with pytest.raises(ImageFileError, match="no JPEG"):
        decode(compressed(script, JPEGBaseline8Bit))
    with pytest.raises(ImageFileError, match="more compressed pixels"):
        decode(compressed(rle(), RLELossless, second=rle(b"\x81\0" * 2_000_000)))
