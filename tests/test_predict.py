"""`pneumolib predict`: the same numbers as in training, from two files; one broken image does not stop the others."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from conftest import REPO, drawn_parts, save_image
from pneumolib.__main__ import main
from pneumolib.data.facts import fit_ood
from pneumolib.errors import ModelError
from pneumolib.learning.fitting import save_model
from pneumolib.learning.networks import build_model
from pneumolib.learning.predicting import predict_logits
from pneumolib.params import DataParams, ImageParams, ModelParams
from pneumolib.provenance import file_sha256
from pneumolib.reporting import results
from pneumolib.reporting.results import read_result, write_result
from pneumolib.serve.predict import image_files, score_images, with_maps
from pneumolib.serve.trained import load_trained
from test_decode import dicom_bytes, write_dicom
from test_reporting import result

IMAGE = ImageParams(size_px=32, fit="pad", equalize="clahe", clahe_tiles=2)
NO_CORNERS = {"logits": (), "probabilities": (), "chosen_on": "validation"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project with drawn images and one run, whose network was never trained: `tiny/03_baseline_cnn`."""
    root = tmp_path_factory.mktemp("project")
    manifest, parts = drawn_parts(root, IMAGE, 24, 25)
    keras.utils.set_random_seed(1)
    network = build_model(ModelParams(name="coursework_cnn"), IMAGE)
    folder = root / "runs/tiny/03_baseline_cnn"
    folder.mkdir(parents=True)
    save_model(network, folder / "model.keras")
    logits = predict_logits(network, parts["test"])
    paths = manifest.table.set_index("image_id").path[parts["test"].table.image_id]
    np.savez(root / "test.npz", logits=logits, paths=paths)
    middle = float(1 / (1 + np.exp(-2 * np.median(logits) - 0.5)))
    ood = fit_ood(manifest, parts["train"], parts["val"])
    write_result(
        result(
            study="tiny", parameters={"image": IMAGE.model_dump()}, synthetic=True, model_sha256=file_sha256(folder / "model.keras"),
            threshold=results.ThresholdResult(value=middle, rule="r", sensitivity=1.0, specificity=1.0, chosen_on="validation"),
            calibration=results.CalibrationResult(method="platt", slope=2.0, intercept=0.5, **NO_CORNERS),
            ood=ood,
        ),
        folder,
    )  # fmt: skip
    return root


@pytest.fixture
def at_root(root, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(root))
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def model(root):
    return load_trained(root / "runs/tiny/03_baseline_cnn")


def test_the_numbers_are_those_of_training(at_root, capsys):
    """Other image parameters than the defaults, so that a second way to prepare images would show."""
    known = np.load("test.npz", allow_pickle=True)
    assert main(["predict", "tiny/03_baseline_cnn", *(f"data/{p}" for p in known["paths"]), "--json", "-"]) == 0
    said = json.loads(capsys.readouterr().out)
    threshold = said["model"]["threshold"]
    assert said["model"]["study"] == "tiny"
    for row, path, logit in zip(said["images"], known["paths"], known["logits"], strict=True):
        assert row["file"] == f"data/{path}"
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-2 * logit - 0.5)), abs=1e-6)
        assert row["predicted_class"] == ("pneumonia" if row["probability"] >= threshold else "normal")
    assert len({row["predicted_class"] for row in said["images"]}) == 2


def test_a_network_that_gives_no_number_gives_no_class(model, root, monkeypatch):
    """An image whose logit is not finite is an error on its row; its neighbours keep theirs."""
    files = sorted(root.glob("data/test/*/*.jpeg"))[:3]
    logits = np.array([np.nan, 0.0, np.inf])
    monkeypatch.setattr("pneumolib.learning.predicting.logits_of", lambda network, pixels: logits)
    one, two, three = score_images(model, [(file.name, file) for file in files])
    for lost, said in ((one, "nan"), (three, "inf")):
        assert (lost.predicted_class, lost.probability) == (None, None)
        assert lost.error == f"the network gives no finite number for this image: {said}"
    assert (two.error, two.probability) == (None, pytest.approx(1 / (1 + np.exp(-0.5))))
    referring = replace(model, threshold=replace(model.threshold, refer_low=0.5, refer_high=0.7))
    _, two, _ = score_images(referring, [(file.name, file) for file in files])
    assert two.predicted_class == "refer"


def test_a_file_may_be_as_large_as_in_training(model, root):
    file = next(root.glob("data/test/*/*.jpeg"))
    assert model.limits.max_megapixels == 30
    for limits, said in (
        ({"max_megapixels": 0.001}, "data.max_megapixels"),
        ({"max_file_mb": 0.001}, "data.max_file_mb"),
    ):
        held = replace(model, limits=DataParams(**limits))
        for source in (file, file.read_bytes()):
            assert f"{said} allows 0.001" in next(score_images(held, [("x", source)])).error


def test_a_broken_file_is_reported_and_the_rest_go_on(at_root, tmp_path, capsys):
    good = next(at_root.glob("data/test/NORMAL/*.jpeg"))
    cut, out = tmp_path / "cut.jpeg", tmp_path / "out.csv"
    cut.write_bytes(good.read_bytes()[:900])
    assert main(["predict", "tiny/03_baseline_cnn", str(cut), "missing.png", str(good), "--csv", str(out)]) == 1
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["predicted_class"] for row in rows[:2]] == ["", ""]
    assert rows[2]["predicted_class"] in ("normal", "pneumonia")
    assert [row["error"].split(":")[0] for row in rows] == ["does not decode", "cannot be read", ""]
    said = capsys.readouterr()
    for part in (f"{cut}: does not decode", "1 image(s)", "2 without a prediction", "Research only, not a medical device.",
                 "its figures mean nothing for patients"):  # fmt: skip
        assert part in said.err
    assert said.out == ""


NAMES = [b"M\xfcller.png", b"new\nline 0.0001 normal.png", b" =1+1.png", b"\x1b[2J.png", "\u202egnp.png".encode(),
         b"<b>|*.png", b"x" * 250 + b".png"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_name_of_a_file_ends_a_batch_or_writes_a_row(at_root, tmp_path, encoding):
    """In a process of its own, whose terminal has the encoding; three ways to write, a row a file in each."""
    source = next(at_root.glob("data/test/NORMAL/*.jpeg"))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(source, os.fsencode(folder) + b"/" + name)
    out = [tmp_path / name for name in ("out.csv", "out.json")]
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPO), "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-m", "pneumolib", "predict", "tiny/03_baseline_cnn", str(folder)]
    run = partial(subprocess.run, env=env, capture_output=True)
    written = run([*words, "--csv", out[0], "--json", out[1], "--cam", tmp_path / "maps"])
    assert written.returncode == 0, written.stderr.decode()
    rows = list(csv.DictReader(io.StringIO(out[0].read_text("utf-8"))))
    images = json.loads(out[1].read_text("utf-8"))["images"]
    assert len(rows) == len(images) == len(NAMES)
    assert {os.path.basename(os.fsencode(image["file"])) for image in images} == set(NAMES)
    assert all(row["file"].isprintable() and row["predicted_class"] for row in rows)
    maps = [file.name for file in (tmp_path / "maps").iterdir()]
    assert len(maps) == len(NAMES)
    assert all(name.isprintable() and not set(name) & set('<>:"|?*') for name in maps)
    if encoding == "ascii":
        shown = run(words)
        assert shown.returncode == 0, shown.stderr.decode()
        lines = shown.stdout.decode("ascii").splitlines()
        assert sum(bool(re.match(" +0[.]", line)) for line in lines) == len(NAMES)
        for part in (r"M\xfcller.png", r"new\nline 0.0001 normal.png", r"\x1b[2J.png", r"\u202egnp.png"):
            assert sum(line.endswith(f"/{part}") for line in lines) == 1


def test_a_message_shows_what_cannot_be_seen(at_root, capsys):
    assert main(["predict", "no\x1b[2J\u202erun", "x.png"]) == 2
    assert r"no\x1b[2J\u202erun: no run with" in capsys.readouterr().err
    assert main(["no\x1b[2Jcommand"]) == 2
    assert r"no\x1b[2Jcommand" in capsys.readouterr().err


def test_a_result_of_another_version_is_named_with_what_to_do(at_root, tmp_path, capsys):
    folder = shutil.copytree("runs/tiny/03_baseline_cnn", tmp_path / "old")
    values = json.loads((folder / "result.json").read_text())
    for change, said in (
        ({"schema_version": 3}, "schema_version is 3"),
        ({"parameters": {"image": {"size_px": "x"}}}, "size_px: received 'x'"),
    ):
        (folder / "result.json").write_text(json.dumps(values | change))
        assert main(["predict", str(folder), "x.png"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{folder}/result.json: {said}")


def test_a_table_maps_and_warnings(at_root, tmp_path, capsys):
    rng = np.random.default_rng(0)
    photo = save_image(tmp_path / "a/noise.png", rng.integers(0, 256, (700, 350, 3)))
    also = save_image(tmp_path / "b/noise.png", rng.integers(0, 256, (90, 90)))
    assert main(["predict", "runs/tiny/03_baseline_cnn", str(photo), str(also), "--cam", str(tmp_path / "maps")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["probability", "threshold", "class", "file"]
    assert lines[1].endswith(str(photo))
    below = "\n".join(lines[2 : next(n for n, line in enumerate(lines) if line.endswith(str(also)))])
    for part in ("a picture in colour", "700 px high", "width / height is 0.50"):
        assert part in below
    assert [file.name for file in sorted((tmp_path / "maps").iterdir())] == ["noise-map-2.png", "noise-map.png"]
    with Image.open(tmp_path / "maps/noise-map.png") as picture:
        assert picture.size == (512, 512)
    assert "map: " in below


def test_maps_never_take_the_place_of_an_image_or_of_each_other(model, tmp_path):
    rng = np.random.default_rng(0)
    names = ("a/x.png", "b/x.png", "a/x-map.png", "a/x-map-2.png", "c/X.png")
    files = [save_image(tmp_path / name, rng.integers(0, 256, (40, 40))) for name in names]
    before = [file.read_bytes() for file in files]
    rows = score_images(model, [(str(file), file) for file in files])
    maps = [file for _, file in with_maps(model, rows, tmp_path / "a", files)]
    assert [file.read_bytes() for file in files] == before
    assert len({name.casefold() for name in maps}) == len(files)
    assert [name.removeprefix(f"{tmp_path}/a/") for name in maps] == [
        "x-map-3.png", "x-map-4.png", "x-map-map.png", "x-map-2-map.png", "X-map-5.png"]  # fmt: skip


def test_folders_and_patterns_hold_images_of_all_kinds(at_root, tmp_path, model, monkeypatch):
    with Image.open(next(at_root.glob("data/test/NORMAL/*.jpeg"))) as picture:
        radiograph = np.asarray(picture)
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "in/b.png", radiograph)
    save_image(tmp_path / "in/deeper/a.JPG", radiograph, format="JPEG")
    (tmp_path / "in/notes.txt").write_text("no image")
    (tmp_path / "in/._b.png").write_bytes(b"of macOS")
    write_dicom(tmp_path / "in/IM0001", radiograph, bits=8)
    (tmp_path / "empty").mkdir()
    rows = list(score_images(model, image_files(["in"])))
    assert [row.name for row in rows if row.error is None] == ["in/IM0001", "in/b.png", "in/deeper/a.JPG"]
    # Lossless copies of the same values, which the network cannot tell apart.
    assert rows[0].probability == pytest.approx(rows[1].probability, abs=1e-6)
    assert [name for name, _ in image_files(["in/**/*.[jJ]*"])] == ["in/deeper/a.JPG"]
    # What leads to nothing is not passed over.
    rows = score_images(model, image_files(["empty", "in/*.gif", "in/notes.txt"]))
    assert [row.error.split(":")[0] for row in rows] == [
        "a folder that holds no image", "cannot be read", "not a JPEG, PNG or DICOM image",
    ]  # fmt: skip


def test_memory_does_not_grow_with_the_number_of_files(model, root):
    """No more files are read than a few batches ahead of what has been taken."""
    asked, file = itertools.count(), next(root.glob("data/test/NORMAL/*.jpeg"))
    rows = score_images(model, ((str(n), file) for n in asked), batch=4)
    for _ in range(10):
        next(rows)
    rows.close()
    assert 10 <= next(asked) <= 10 + 5 * 4


def test_an_interrupted_file_keeps_its_part(at_root, tmp_path, monkeypatch, capsys):
    def interrupted(model, files, batch=64, real=score_images):
        yield next(real(model, files, batch))
        raise KeyboardInterrupt

    monkeypatch.setattr("pneumolib.serve.predict.score_images", interrupted)
    out = tmp_path / "out.csv"
    assert main(["predict", "tiny/03_baseline_cnn", "data/test", "--csv", str(out)]) == 130
    assert not out.exists()
    assert len((tmp_path / "out.csv.part").read_text(encoding="utf-8").splitlines()) == 2
    assert f"what was done by then is in {out}.part" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny/04", "data"], "Runs found here: tiny/03_baseline_cnn"),
        (["tiny/03_baseline_cnn", "data", "--csv", "-", "--json", "-"], "both to one place"),
        (["tiny/03_baseline_cnn", "data", "--csv", "."], "a folder is there; name a file"),
        (["tiny/03_baseline_cnn", "data", "--csv", "no/w.csv"], "w.csv: cannot be written: No such file or directory"),
        (["tiny/03_baseline_cnn", "data", "--cam", "test.npz"], "--cam test.npz: cannot be made: File exists"),
    ],
)
def test_what_cannot_be_done_ends_with_2(at_root, words, said, capsys):
    assert main(["predict", *words]) == 2
    assert said in capsys.readouterr().err


def test_another_model_than_the_recorded_one_is_refused_and_code_even_when_forced(at_root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree("runs/tiny/03_baseline_cnn", copy)
    with (copy / "model.keras").open("ab") as file:
        file.write(b" ")  # zip archives may end in anything
    with pytest.raises(ModelError, match=r"not the file that the run wrote: its SHA-256 is .*; or --force"):
        load_trained(copy)
    assert load_trained(copy, force=True).name == "tiny/03_baseline_cnn"
    for other, words in ((IMAGE.model_copy(update={"size_px": 40}), r"\(None, 40, 40, 1\)"), (None, r"\(None, 3\)")):
        pixels = keras.Input((32, 32, 1), dtype="uint8")
        three = keras.Model(pixels, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Rescaling(1.0)(pixels))))
        save_model(build_model(ModelParams(name="coursework_cnn"), other) if other else three, copy / "model.keras")
        with pytest.raises(ModelError, match=f"{words}.*one image, to .*one number"):
            load_trained(copy, force=True)
    assert main(["predict", str(copy), "data"]) == 2
    whole = read_result(copy)
    write_result(whole.model_copy(update={"model_sha256": None}), copy)
    with pytest.raises(ModelError, match=r"result\.json records none\."):
        load_trained(copy)
    pixels = keras.Input((32, 32, 1), dtype="uint8")
    keras.Model(pixels, keras.layers.Lambda(lambda x: x)(pixels)).save(copy / "model.keras")
    with pytest.raises(ModelError, match="a Lambda: Python code inside the file"):
        load_trained(copy, force=True)
    write_result(whole.model_copy(update={"threshold": None, "metrics": {}}), copy)
    with pytest.raises(ModelError, match="holds no threshold and calibration"):
        load_trained(copy, force=True)


def bombs(folder) -> list[str]:
    """Files of kilobytes that claim or hold pictures of gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 30_000
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    jpeg = io.BytesIO()
    Image.new("L", (64, 64)).save(jpeg, "JPEG")
    place = jpeg.getvalue().index(b"\xff\xc0") + 5
    # Two runs of zeros a row and of 128 pixels each: RLE of 9000 x 9000 of 16 bits, behind a header that says 64 x 64.
    part = b"\x81\0" * (9000 * 9000 // 128)
    rle = struct.pack("<16I", 2, 64, 64 + len(part), *[0] * 13) + part * 2
    dataset = dcmread(io.BytesIO(dicom_bytes(np.zeros((64, 64)), 16)))
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([rle])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(file := io.BytesIO(), enforce_file_format=True)
    twice = file.getvalue()
    (folder / "rle.dcm").write_bytes(twice)
    for element in (0x10, 0x11):
        twice += struct.pack("<HH2sHH", 0x28, element, b"US", 2, 9000)
    (folder / "rows named twice.dcm").write_bytes(twice)
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    (folder / "bomb.jpeg").write_bytes(jpeg.getvalue()[:place] + b"\xea\x60" * 2 + jpeg.getvalue()[place + 4 :])
    return sorted(map(str, folder.iterdir()))


READERS = {
    "decoder": "for file in files:\n with contextlib.suppress(ImageFileError): decode(Path(file).read_bytes())",
    "predict": "main(['predict', 'tiny/03_baseline_cnn', *files, '--csv', '-'])",
    "app": "for one in take_in((file, Path(file).read_bytes()) for file in files):\n"
    " with contextlib.suppress(ImageFileError): one.error or decode(one.raw)",
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_bomb_costs_no_memory(at_root, tmp_path, reader):
    """The peak of a process that is given bombs is at most 500 MB above that of the same process without them."""
    code = "import contextlib, re, sys\nfrom pathlib import Path\nfrom pneumolib.__main__ import main\n"
    code += "from pneumolib.data.decode import decode\nfrom pneumolib.errors import ImageFileError\n"
    code += f"from pneumolib.serve.uploads import take_in\nfiles = sys.argv[1:]\n{READERS[reader]}\n"
    # Not `ru_maxrss`, which begins with what the process that starts this one takes.
    code += "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) // 1024)"
    good = [str(next(at_root.glob("data/test/NORMAL/*.jpeg")))]
    (tmp_path / "bombs").mkdir()
    peaks = []
    for files in (good, good + bombs(tmp_path / "bombs")):
        words = [sys.executable, "-c", code, *files]
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
        peaks.append(int(said.stdout.split()[-1]))
    print(reader, peaks)
    assert peaks[1] < peaks[0] + 500, said.stderr
