"""What the page takes, how it names it and what it says, without a browser and without TensorFlow. See test_app."""

import io
import logging
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from conftest import REPO
from pneumolib.__main__ import main
from pneumolib.data.decode import MEGABYTE, decode
from pneumolib.data.pixels import load_image
from pneumolib.errors import ImageFileError
from pneumolib.params import ImageParams
from pneumolib.serve import uploads
from pneumolib.serve.predict import Scored
from pneumolib.serve.uploads import MOST_FILES, Taken, safe_error, take_in
from test_decode import RAMP, claiming, dicom_bytes, encoded, header

app = pytest.importorskip("pneumolib.serve.app", reason="streamlit is not installed: pip install .[app]")
DICOM, PNG = dicom_bytes(RAMP), encoded("PNG")


@pytest.fixture
def undecoded(monkeypatch):
    """No pixel of a file may be unpacked."""
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr("pneumolib.data.dicom.pixel_array", lambda *_: pytest.fail("decoded"))


def deflated_dicom() -> bytes:
    """Of a few kilobytes, which would become ten megabytes before anything could be asked of it."""
    dataset = dcmread(io.BytesIO(DICOM))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = b"\0" * 10_000_000
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (claiming(30_000, 5000), "too many pixels"),  # Pillow warns of this one and refuses the next
        (claiming(60_000, 10_000), "too many pixels"),
        (b"\0" * 128 + b"DICM" + b"Secret" * 9, "^DICOM whose header cannot be read$|^DICOM without rows"),
        (deflated_dicom(), "deflated"),
    ],
)
def test_what_has_no_header_of_an_image_is_refused(raw, said, undecoded):
    with pytest.raises(ImageFileError, match=said):
        header(raw)


def test_a_long_thin_picture_makes_no_huge_square():
    raw = encoded("PNG", np.zeros((1, 20_000)))
    with pytest.raises(ImageFileError, match="too many once the longer side has made a square"):
        load_image(raw, ImageParams(fit="pad"))
    assert load_image(raw, ImageParams(fit="stretch")).shape == (180, 180, 1)


def test_a_name_is_shown_of_jpeg_and_png_alone():
    files = [("Doe^Jane.dcm", DICOM), ("child.png", PNG), ("Doe^Jane.jpg", DICOM), ("Doe Jane.Jane", b"what?"),
             ("notes.TXT", b"words"), ("child.png", encoded("JPEG")), ("\u202e\n", PNG), ("a" * 500 + ".png", PNG)]  # fmt: skip
    taken = take_in(files)
    assert [one.name for one in taken[:-1]] == [
        "DICOM 1", "child.png", "DICOM 2", "File 4", "File 5", "child.png (2)", "PNG 7",
    ]  # fmt: skip
    assert [one.error is None for one in taken] == [True, True, True, False, False, True, True, True]
    assert take_in([("x.dcm", DICOM)], taken)[0].name == "DICOM 3"


def test_limits_hold_before_anything_is_decoded(undecoded, monkeypatch):
    film = dicom_bytes(RAMP, NumberOfFrames="50000")
    files = [b"\0" * (65 * MEGABYTE), claiming(8000, 9000), film, PNG]
    big, wide, long, good = taken = take_in([("x", raw) for raw in files])
    assert big.error == "65.0 MB; data.max_file_mb allows 64 MB"
    assert wide.error == "8000 x 9000 pixels; data.max_megapixels allows 30 million"
    assert long.error == "DICOM with 50000 frames; a radiograph is one picture"
    assert good.error is None
    assert [one.raw for one in taken] == [b"", b"", b"", PNG]  # what was refused is not kept
    many = take_in([(f"{i}.png", PNG) for i in range(MOST_FILES + 1)], [big, wide, long])
    assert [one.error is None for one in many] == [True] * MOST_FILES + [False]
    monkeypatch.setattr(uploads, "MOST_TOGETHER", 2 * len(PNG))
    assert "all files together" in take_in([(f"{i}.png", PNG) for i in range(3)])[2].error


def test_no_message_quotes_a_dicom_file():
    """pydicom's errors hold the values that they stumble over."""
    raw = dicom_bytes(RAMP, photometric="DOE JANE")
    [one] = take_in([("x.dcm", raw)])
    with pytest.raises(ImageFileError, match="DOE JANE") as fault:
        decode(raw)
    assert safe_error(one, str(fault.value)).startswith("DICOM does not decode")
    assert "DOE" not in safe_error(one, str(fault.value))
    for told, error in ((one, "DICOM without pixels"), (Taken("a.png"), "does not decode: cut")):
        assert safe_error(told, error) == error


def test_pydicom_is_silent_where_the_page_is_served():
    """In a process of its own: it is for good. What pydicom warns of holds the value that it warns of."""
    code = (
        "import logging; logging.basicConfig()\n"
        "from pydicom import Dataset; Dataset().StudyInstanceUID = 'Loud^Name'\n"
        "from pneumolib.serve.app import keep_private; keep_private()\n"
        "Dataset().StudyInstanceUID = 'Secret^Name'\n"
        "logging.getLogger('pydicom.pixels.utils').error('Secret^Name')\n"
        "from starlette.formparsers import MultiPartParser\n"
        "print(MultiPartParser.spool_max_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert "Loud^Name" in done.stderr
    assert "Secret" not in done.stderr
    assert done.stdout.split() == [str(201 * 2**20)]


def test_the_table_reads_back_and_holds_no_formula():
    sick = Scored("a.png", 0.931, "pneumonia", ("darker than 99 of 100 training images",))
    rows = app.table(
        SimpleNamespace(threshold=SimpleNamespace(value=0.4), name="demo/03"),
        [sick, Scored("=cmd()", error="empty file")],
    )
    back = pd.read_csv(io.StringIO(rows.to_csv(index=False)), keep_default_na=False, dtype=str)
    assert back.to_numpy().tolist() == [
        ["a.png", "0.931", "0.4", "pneumonia", sick.warnings[0], "", "demo/03"],
        ["'=cmd()", "", "0.4", "", "", "empty file", "demo/03"],
    ]


def test_without_streamlit_or_a_run_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    for words, said in ((["app"], "`make report` trains one"), (["app", "demo/03_x"], "demo/03_x: no run with")):
        assert main(words) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr("pneumolib.__main__.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert 'pip install "pneumolib[app]"' in capsys.readouterr().err


def test_the_server_listens_to_this_machine_and_calls_nobody():
    words = app.settings(8600, browse=False)
    options = {*zip(words[::2], words[1::2], strict=True)}
    assert {("--server.address", "localhost"), ("--browser.gatherUsageStats", "false")} <= options
    assert {value for name, value in options if name == "--server.allowedHosts"} == {"localhost", "127.0.0.1"}
    assert logging.getLogger("pydicom").propagate  # nothing of it happens by importing
