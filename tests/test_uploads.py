"""What the page takes, how it calls it and what it says, without a browser and without TensorFlow. See test_app."""

import csv
import io
import logging
import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from conftest import REPO
from pneumolib.__main__ import main
from pneumolib.data.decoding import ImageFileError, decode
from pneumolib.data.headers import form_of, read_header
from pneumolib.data.pixels import load_image
from pneumolib.params import ImageParams
from pneumolib.serving import app_server, app_views, uploads
from pneumolib.serving.scoring import Scored
from pneumolib.serving.uploads import MOST_BYTES, MOST_FILES, Taken, safe_error, sample, take_in
from test_reporting import result
from test_sources import RAMP, write_dicom

SICK = Scored("a.png", 0.931, 0.88, "pneumonia", ("darker than 99 of 100 training images",))
WELL = Scored("b.png", 0.2, 0.05, "normal")


def picture(form: str = "PNG", width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 90).save(file, form)
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of less than a hundred bytes whose head names any size."""
    head = struct.pack(">II", width, height) + b"\x08\0\0\0\0"
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def dicom(tmp_path, stored=RAMP, **elements) -> bytes:
    return write_dicom(tmp_path / "x.dcm", stored, **elements).read_bytes()


def test_a_header_is_read_and_no_pixel(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr("pneumolib.data.dicom.pixel_array", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**10)
    for raw, form, size in ((picture("JPEG"), "JPEG", (40, 30, 1)), (claiming(50_000, 60_000), "PNG", (50_000, 60_000, 1)),
                            (dicom(tmp_path, NumberOfFrames="5"), "DICOM", (64, 48, 5))):  # fmt: skip
        found = read_header(raw)
        assert (found.form, found.width_px, found.height_px, found.frames) == (form, *size)
        assert found.pixels == np.prod(size)


def test_a_head_that_claims_more_than_pillow_opens_is_no_crash():
    for size in (30_000, 60_000):  # Pillow warns of the first and refuses the second
        with pytest.raises(ImageFileError, match="too many pixels"):
            read_header(claiming(size, 5000 * size // 30_000))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty file"),
        (b"GIF89a" + b"\0" * 200, "neither JPEG, PNG nor DICOM"),
        (b"\xff\xd8\xff" + b"\0" * 50, "begins as JPEG"),
        (picture()[:20], "does not decode|begins as PNG"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"\0" * 128 + b"DICM" + b"Secret" * 9, "^DICOM whose header cannot be read$|^DICOM without rows"),
    ],
)
def test_what_has_no_header_of_an_image_is_refused(raw, said):
    with pytest.raises(ImageFileError, match=said):
        read_header(raw)


def test_a_deflated_dicom_is_not_inflated(tmp_path):
    """A kilobyte of it can become a gigabyte before anything could be asked of it."""
    raw = dicom(tmp_path)
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(raw))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = b"\0" * 10_000_000
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
    assert len(file.getvalue()) < 50_000
    with pytest.raises(ImageFileError, match="deflated"):
        read_header(file.getvalue())


def test_broken_dicom_never_gives_another_error(tmp_path):
    """Changed and cut at random; struct.error and pydicom's own came through once, and stopped all other files."""
    whole, random = dicom(tmp_path, WindowCenter="30", WindowWidth="20", PixelPaddingValue=3), np.random.default_rng(7)
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(200):
            raw = bytearray(whole)
            for place in random.integers(132, 700, random.integers(1, 9)):
                raw[place] = random.integers(256)
            raw = bytes(raw[: random.integers(140, 900)] if random.random() < 0.2 else raw)
            for read in (read_header, decode):
                try:
                    read(raw)
                    outcomes.add((read, "read"))
                except ImageFileError:
                    outcomes.add((read, "refused"))
    assert len(outcomes) == 4


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_broken_pictures_never_give_another_error(form):
    """EXIF of another type than it must be raised TypeError and struct.error, and stopped all other files."""
    exif, file, random = Image.Exif(), io.BytesIO(), np.random.default_rng(7)
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.XResolution] = 6, 72.0
    grey = Image.fromarray(random.integers(0, 256, (24, 24), np.uint8))
    grey.save(file, form, exif=exif)
    whole, outcomes = file.getvalue(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1500):
            raw = bytearray(whole)
            for place in random.integers(8, min(200, len(whole)), random.integers(1, 4)):
                raw[place] = random.integers(256)
            for read in (read_header, decode):
                try:
                    read(bytes(raw))
                    outcomes.add((read, "read"))
                except ImageFileError:
                    outcomes.add((read, "refused"))
    assert len(outcomes) == 4


def test_a_long_thin_picture_makes_no_huge_square():
    file = io.BytesIO()
    Image.new("L", (20_000, 1)).save(file, "PNG")
    with pytest.raises(ImageFileError, match="too many once the longer side has made a square"):
        load_image(file.getvalue(), ImageParams(fit="pad"))
    assert load_image(file.getvalue(), ImageParams(fit="stretch")).shape == (180, 180, 1)


def test_a_name_is_shown_of_jpeg_and_png_alone(tmp_path):
    files = [("Doe^Jane.dcm", dicom(tmp_path)), ("child.png", picture()), ("Doe^Jane.jpg", dicom(tmp_path)),
             ("Doe Jane.Jane", b"what?"), ("notes.TXT", b"words"), ("child.png", picture("JPEG")), ("\u202e\n", picture()),
             ("a" * 500 + ".png", picture())]  # fmt: skip
    taken = take_in(files)
    assert [one.name for one in taken[:-1]] == [
        "DICOM 1", "child.png", "DICOM 2", "File 4", "File 5 (.txt)", "child.png (2)", "PNG 7",
    ]  # fmt: skip
    assert len(taken[-1].name) < 50
    assert [one.error is None for one in taken] == [True, True, True, False, False, True, True, True]
    assert take_in([("x.dcm", dicom(tmp_path))], taken)[0].name == "DICOM 3"


def test_limits_hold_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    big, wide, good = take_in(
        [("a.png", b"\0" * (MOST_BYTES + 1)), ("b.png", claiming(8000, 9000)), ("c.png", picture())]
    )
    assert (big.error, wide.error, good.error) == (
        "64 MB; allowed are 64 MB for one file", "8000 x 9000 pixels; allowed are 30 million pixels", None,
    )  # fmt: skip
    assert (big.raw, wide.raw) == (b"", b"")  # what was refused is not kept
    many = take_in([(f"{i}.png", picture()) for i in range(MOST_FILES + 1)], [big, wide])
    assert [one.error is None for one in many] == [True] * MOST_FILES + [False]
    monkeypatch.setattr(uploads, "MOST_TOGETHER", 2 * len(picture()))
    assert "all files together" in take_in([(f"{i}.png", picture()) for i in range(3)])[2].error


def test_no_message_quotes_a_dicom_file(tmp_path):
    """pydicom's errors hold the values that they stumble over."""
    raw = dicom(tmp_path, photometric="DOE JANE")
    [one] = take_in([("x.dcm", raw)])
    with pytest.raises(ImageFileError, match="DOE JANE") as fault:
        decode(raw)
    assert "DOE" not in safe_error(one, str(fault.value))
    assert "does not decode" in safe_error(one, str(fault.value))
    assert safe_error(one, "DICOM without pixels") == "DICOM without pixels"
    assert safe_error(Taken("a.png"), "does not decode: cut") == "does not decode: cut"


def test_pydicom_is_silent_where_the_page_is_served():
    """In a process of its own: it is for good. What pydicom warns of holds the value that it warns of."""
    code = (
        "import logging; logging.basicConfig()\n"
        "from pydicom import Dataset; Dataset().StudyInstanceUID = 'Loud^Name'\n"
        "from pneumolib.serving.app_server import keep_quiet, keep_in_memory; keep_quiet(); keep_in_memory()\n"
        "Dataset().StudyInstanceUID = 'Secret^Name'\n"
        "logging.getLogger('pydicom.pixels.utils').error('Secret^Name')\n"
        "from starlette.formparsers import MultiPartParser; from PIL import Image\n"
        "print(MultiPartParser.spool_max_size, Image.MAX_IMAGE_PIXELS)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert "Loud^Name" in done.stderr
    assert "Secret" not in done.stderr
    assert done.stdout.split() == [str(201 * 2**20), "30000000"]


def test_samples_are_images_and_each_is_another_one():
    had = []
    for title in (*uploads.SAMPLES, "normal"):
        had += take_in([sample(title, had)], had)
    assert [one.name for one in had] == [
        "drawn, normal 1", "drawn, bacterial pneumonia 1", "drawn, viral pneumonia 1", "drawn, normal 2",
    ]  # fmt: skip
    assert {form_of(one.raw) for one in had} == {"PNG"}
    assert len({one.raw for one in had}) == 4


def test_the_call_in_words_and_as_a_bar():
    said = app_views.call_words(SICK, 0.4)
    assert "probability of 93.1%. That is at or above the threshold of 40.0%" in said
    assert "calls this image pneumonia" in said
    assert "That is below the threshold of 40.0%" in app_views.call_words(WELL, 0.4)
    assert "Calibrated: 88.0%" in app_views.calibrated_words(SICK)
    assert [app_views.percent(share) for share in (0, 0.0004, 0.5, 0.9996, 1)] == [
        "below 0.1%", "below 0.1%", "50.0%", "above 99.9%", "above 99.9%",
    ]  # fmt: skip
    bar = app_views.bar(SICK, 0.4)
    assert 'aria-label="Probability of pneumonia 93.1%, threshold 40.0%"' in bar
    assert re.findall(r"(width|left): ([\d.]+)%", bar) == [("width", "93.10"), ("left", "40.00")]
    assert "#D55E00" in bar
    assert "#0072B2" in app_views.bar(WELL, 0.4)


def test_rows_name_what_was_not_read_and_escape_names():
    shown = app_views.rows([SICK, Scored("<img src=x>", error="broken <file>")], 0.4)
    assert "unlike the training images" in shown
    assert "&lt;img src=x&gt;" in shown
    assert "Not read: broken &lt;file&gt;" in shown


def test_the_table_reads_back_and_holds_no_formula():
    text = app_views.table([SICK, WELL, Scored("=cmd()", error="empty file")], 0.4, "demo/03")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == app_views.COLUMNS
    assert [row["image"] for row in rows] == ["a.png", "b.png", "'=cmd()"]
    assert [row["call"] for row in rows] == ["pneumonia", "normal", ""]
    assert float(rows[0]["calibrated_probability"]) == SICK.calibrated
    assert rows[0]["warnings"] == SICK.warnings[0]
    assert rows[2]["error"] == "empty file"


def test_where_a_map_is_strongest_is_said():
    saliency = np.zeros((10, 10))
    assert "empty" in app_views.strongest(saliency)
    saliency[8, 8] = 1
    assert app_views.strongest(saliency) == "The map is strongest at the lower right of the picture."
    saliency[5, 5] = 2
    assert app_views.strongest(saliency) == "The map is strongest in the middle of the picture."


def test_pictures_are_inside_the_page_at_one_size_and_equalised_only_when_asked():
    raw = picture(width=400, height=300)
    pixels = app_views.large(raw, ImageParams(size_px=64, equalize="clahe", channels=3))
    assert pixels.shape == (448, 448, 3)
    assert set(np.unique(pixels)) == {90}
    assert (app_views.equalised(pixels, "none") == 90).all()
    assert not (app_views.equalised(pixels, "hist") == 90).all()
    assert '<img alt="&quot;&lt;" src="data:image/jpeg;base64,' in app_views.picture(pixels, '"<')


def test_a_run_is_said_to_be_drawn():
    assert app_views.run_words(result(synthetic=True)).startswith("x/03_baseline_cnn, made from 9 drawn images.")
    assert "9 radiographs. AUROC on its test images: 0.900" in app_views.run_words(result())


def test_without_streamlit_or_a_run_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    assert main(["app"]) == 2
    assert "`make report` trains one" in capsys.readouterr().err
    assert main(["app", "demo/03_nothing"]) == 2
    assert "demo/03_nothing: no run with" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert 'pip install "pneumolib[app]"' in capsys.readouterr().err


def test_the_server_listens_to_this_machine_and_calls_nobody():
    words = app_server.settings(8600, browse=False)
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--server.address"] == options["--server.allowedHosts"] == "localhost"
    assert options["--browser.gatherUsageStats"] == "false"
    assert options["--server.headless"] == "true"
    assert options["--server.port"] == "8600"
    assert app_server.settings(8600, browse=True)[5] == "false"
    assert logging.getLogger("pydicom").propagate  # nothing of it happens by importing
