"""What the page takes, how it calls it and what it says, without a browser and without TensorFlow. See test_app."""

import io
import logging
import struct
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from conftest import REPO
from pneumolib.__main__ import main
from pneumolib.data.decode import decode, form_of, read_header
from pneumolib.data.pixels import load_image
from pneumolib.errors import ImageFileError
from pneumolib.params import ImageParams
from pneumolib.serve import app_server, uploads
from pneumolib.serve.score import Scored
from pneumolib.serve.uploads import MOST_BYTES, MOST_FILES, Taken, safe_error, sample, take_in
from test_decode import RAMP, write_dicom

app = pytest.importorskip("pneumolib.serve.app", reason="streamlit is not installed: pip install .[app]")
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


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty file"),
        (claiming(30_000, 5000), "too many pixels"),  # Pillow warns of this one and refuses the next
        (claiming(60_000, 10_000), "too many pixels"),
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
        "from pneumolib.serve.app_server import keep_private; keep_private()\n"
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


def test_the_table_reads_back_and_holds_no_formula():
    rows = app.table([SICK, WELL, Scored("=cmd()", error="empty file")], 0.4, "demo/03")
    back = pd.read_csv(io.StringIO(rows.to_csv(index=False)), keep_default_na=False)
    assert list(back.image) == ["a.png", "b.png", "'=cmd()"]
    assert list(back.predicted_class) == ["pneumonia", "normal", ""]
    assert list(back.calibrated_probability) == ["0.88", "0.05", ""]
    assert list(back.warnings) == [SICK.warnings[0], "", ""]
    assert list(back.error) == ["", "", "empty file"]


def test_a_probability_and_a_map_in_words():
    found = [app.percent(share) for share in (0.0004, 0.5, 0.9996)]
    assert found == ["below 0.1%", "50.0%", "above 99.9%"]
    saliency = np.zeros((10, 10))
    assert "empty" in app.strongest(saliency)
    saliency[8, 8] = 1
    assert app.strongest(saliency) == "The map is strongest at the lower right of the picture."
    saliency[5, 5] = 2
    assert app.strongest(saliency) == "The map is strongest in the middle of the picture."


def test_pictures_are_inside_the_page():
    assert '<img alt="&quot;&lt;" src="data:image/jpeg;base64,' in app.picture(np.zeros((4, 4, 3), np.uint8), '"<', "")


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
    assert logging.getLogger("pydicom").propagate  # nothing of it happens by importing
