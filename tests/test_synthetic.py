"""The drawn data set: archive's layout and names, disjoint patients, the traps, whole or absent."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumolib.data import synthetic
from pneumolib.data.layout import MARKER, is_drawn, recipe_of
from pneumolib.errors import DataError

SICK = re.compile(r"person(?P<number>\d+)_(?P<kind>bacteria|virus)_(?P<serial>\d+)\.jpeg")
WELL = re.compile(r"(?P<kind>IM|NORMAL2-IM)-(?P<number>\d{4})-\d{4}(-\d{4})?\.jpeg")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The data set as the demo study draws it."""
    return synthetic.draw_dataset(tmp_path_factory.mktemp("demo") / "data")


def images(root, pattern="*/*"):
    return sorted(root.glob(f"{pattern}/*.jpeg"))


def digests(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in images(root)}


def patient(path):
    match = (SICK if path.parent.name == "PNEUMONIA" else WELL).fullmatch(path.name)
    assert match, path.name
    return match["kind"], int(match["number"])


def header(path):
    """Aspect ratio, colour mode and the sum of the luma quantisation table."""
    with Image.open(path) as image:
        return image.width / image.height, image.mode, sum(image.quantization[0])


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    one, two, other = (
        digests(synthetic.draw_dataset(tmp_path / name, 24, seed)) for name, seed in [("a", 5), ("b", 5), ("c", 6)]
    )
    assert one == two
    assert not set(one.values()) & set(other.values())


def test_one_image_does_not_depend_on_those_drawn_before():
    alone = synthetic.draw_radiograph("virus", 3, 1)
    synthetic.draw_radiograph("bacteria", 3, 1)
    np.testing.assert_array_equal(alone, synthetic.draw_radiograph("virus", 3, 1))
    assert alone.dtype == np.uint8
    assert alone.ndim == 2
    assert 220 <= alone.shape[1] <= 520
    assert alone.std() > 20


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="fungus"):
        synthetic.draw_radiograph("fungus")


def test_layout_and_prevalence(drawn):
    count = {f"{p.parent.parent.name}/{p.parent.name}": 0 for p in images(drawn)}
    for path in images(drawn):
        count[f"{path.parent.parent.name}/{path.parent.name}"] += 1
    assert sum(count.values()) == 400
    assert count["val/NORMAL"] == count["val/PNEUMONIA"] == 8
    assert count["test/NORMAL"] + count["test/PNEUMONIA"] == 100
    assert count["test/PNEUMONIA"] / 100 == pytest.approx(0.625, abs=0.02)
    assert count["train/PNEUMONIA"] / (400 - 116) == pytest.approx(0.74, abs=0.02)


def test_names_and_numbers_follow_the_archive(drawn):
    serials = {"bacteria": [], "virus": []}
    for path in images(drawn):
        kind, number = patient(path)
        if kind in serials:
            serials[kind].append((int(SICK.fullmatch(path.name)["serial"]), number))
    for pairs in serials.values():
        numbers = [number for _, number in sorted(pairs)]
        assert numbers == sorted(numbers)
        assert len({serial for serial, _ in pairs}) == len(pairs)
    assert any(WELL.fullmatch(p.name) and WELL.fullmatch(p.name)[3] for p in images(drawn, "*/NORMAL"))


def test_patients_stay_in_one_split_though_numbers_recur(drawn):
    groups = {s: {patient(p) for p in images(drawn, f"{s}/*")} for s in ("train", "val", "test")}
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & (groups["train"] | groups["test"])
    assert {n for _, n in groups["train"]} & {n for _, n in groups["test"]}
    assert {k for k, _ in groups["train"]} == {k for k, _ in groups["test"]} == set(synthetic.KINDS)
    sizes = [sum(patient(p) == g for p in images(drawn, "train/PNEUMONIA")) for g in groups["train"]]
    assert max(sizes) >= 4


def test_jpeg_quality_gives_train_normal_away(drawn):
    def luma(pattern):
        return {header(p)[2] for p in images(drawn, pattern)}

    fine, coarse = luma("train/NORMAL"), luma("train/PNEUMONIA")
    assert len(fine) == len(coarse) == 1
    assert max(fine) < min(coarse) / 3
    assert luma("test/*") == luma("val/*") == coarse


def test_colour_files_are_a_few_of_train_pneumonia(drawn):
    colour = [p for p in images(drawn) if header(p)[1] == "RGB"]
    assert {p.parent.relative_to(drawn).as_posix() for p in colour} == {"train/PNEUMONIA"}
    assert 0.02 < len(colour) / len(images(drawn, "train/PNEUMONIA")) < 0.1
    assert all(header(p)[1] in ("L", "RGB") for p in images(drawn))


def test_duplicates_lie_within_a_patient_of_train(drawn):
    by_digest = {}
    for path in images(drawn):
        by_digest.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path)
    copies = [paths for paths in by_digest.values() if len(paths) > 1]
    assert 1 <= len(copies) <= 10
    for paths in copies:
        assert {p.parent.parent.name for p in paths} == {"train"}
        assert len({patient(p) for p in paths}) == 1


def test_shapes_differ_by_class_and_overlap(drawn):
    well, sick = ([header(p)[0] for p in images(drawn, f"*/{name}")] for name in ("NORMAL", "PNEUMONIA"))
    assert np.median(well) == pytest.approx(1.24, abs=0.08)
    assert np.median(sick) == pytest.approx(1.49, abs=0.08)
    assert np.quantile(well, 0.9) > np.quantile(sick, 0.25)


@pytest.mark.parametrize("n_images", [24, 25, 31, 40, 60, 199, 200, 401])
def test_every_size_has_enough_patients(n_images):
    for seed in range(10):
        files = synthetic._plan(n_images, seed)
        assert len({f.path for f in files}) == n_images
        for split, least in (("train", 4), ("test", 2), ("val", 1)):
            for sick in (False, True):
                those = [f for f in files if f.split == split and f.sick == sick]
                assert len({(f.kind, f.number) for f in those}) >= least
        assert any(f.rgb for f in files)
        assert any(f.source for f in files)


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"n_images is 23.*24"):
        synthetic.draw_dataset(tmp_path / "data", 23)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    calls, save = [], synthetic._save

    def stop_midway(*args):
        calls.append(args)
        if len(calls) > 5:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(synthetic, "_save", stop_midway)
    with pytest.raises(KeyboardInterrupt):
        synthetic.draw_dataset(tmp_path / "data", 24)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    monkeypatch.setattr(synthetic, "_save", save)
    assert len(images(synthetic.draw_dataset(tmp_path / "data", 24))) == 24


def test_an_interrupted_redrawing_keeps_the_old_one(tmp_path, monkeypatch):
    root = synthetic.draw_dataset(tmp_path / "data", 24)
    before = digests(root)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        synthetic.draw_dataset(root, 25)
    assert digests(root) == before


def test_drawn_once_and_redrawn_on_another_recipe_or_a_lost_file(tmp_path):
    root = synthetic.draw_dataset(tmp_path / "data", 24)
    assert set(recipe_of(root)) == {"drawn", "n_images", "seed", "code_sha256"}
    assert is_drawn(root)
    assert not is_drawn(tmp_path)
    stamp = {p: p.stat().st_mtime_ns for p in images(root)}
    synthetic.draw_dataset(root, 24)
    assert {p: p.stat().st_mtime_ns for p in images(root)} == stamp
    images(root)[0].unlink()
    assert len(images(synthetic.draw_dataset(root, 24))) == 24
    assert len(images(synthetic.draw_dataset(root, 26))) == 26
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["data"]


@pytest.mark.parametrize("name", ["notes.txt", "train/NORMAL/IM-0001-0001.jpeg", MARKER])
def test_a_foreign_folder_is_not_overwritten(tmp_path, name):
    mine = tmp_path / "data" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    with pytest.raises(DataError, match="nothing was changed"):
        synthetic.draw_dataset(tmp_path / "data", 24)
    assert mine.read_text() == "{}"


@pytest.mark.parametrize("name", ["notes.txt", "train/NORMAL/mine.jpeg"])
def test_a_file_put_into_a_drawing_is_not_lost(tmp_path, name):
    root = synthetic.draw_dataset(tmp_path / "data", 24)
    (root / name).write_text("mine")
    with pytest.raises(DataError, match="nothing was changed"):
        synthetic.draw_dataset(root, 26)
    assert (root / name).read_text() == "mine"


def test_two_processes_at_once(tmp_path):
    code = "import sys; from pneumolib.data.synthetic import draw_dataset; draw_dataset(sys.argv[1], 40)"
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    home = Path(synthetic.__file__).parents[2]
    both = [subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum(b"40/40" in error for error in errors) == 1
    assert len(images(tmp_path / "data")) == 40
