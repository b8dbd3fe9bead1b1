"""The drawn data sets: the archive's layout, names and traps; a second hospital's table; whole or absent."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumolib.data import synthetic
from pneumolib.data.layout import is_drawn, recipe_of
from pneumolib.data.manifest import read_manifest
from pneumolib.data.split import without_shared
from pneumolib.params import DataParams

SICK = re.compile(r"person(?P<number>\d+)_(?P<kind>bacteria|virus)_(?P<serial>\d+)\.jpeg")
WELL = re.compile(r"(?P<kind>IM|NORMAL2-IM)-(?P<number>\d{4})-\d{4}(-\d{4})?\.jpeg")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The data set as the demo study draws it, in small."""
    return synthetic.draw_dataset(tmp_path_factory.mktemp("demo") / "data", 200)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """The manifest of the second hospital, read through the source that the demo names."""
    root = tmp_path_factory.mktemp("second")
    params = DataParams(source="synthetic", hospital=2, root=str(root / "images"), n_images=48)
    return read_manifest(params, cache_dir=root / "cache")


def images(root, pattern="*/*"):
    return sorted(root.glob(f"{pattern}/*.jpeg"))


def digests(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.*") if p.is_file()
    }


def patient(path):
    match = (SICK if path.parent.name == "PNEUMONIA" else WELL).fullmatch(path.name)
    assert match, path.name
    return match["kind"], int(match["number"])


def header(path):
    """Aspect ratio, colour mode and the sum of the luma quantisation table."""
    with Image.open(path) as image:
        return image.width / image.height, image.mode, sum(image.quantization[0])


# --- the archive in small


def test_patients_stay_in_one_split_though_numbers_recur(drawn):
    groups = {s: {patient(p) for p in images(drawn, f"{s}/*")} for s in ("train", "val", "test")}
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & (groups["train"] | groups["test"])
    assert {n for _, n in groups["train"]} & {n for _, n in groups["test"]}
    assert {k for k, _ in groups["train"]} == {k for k, _ in groups["test"]} == set(synthetic.KINDS)
    assert pd.Series(map(patient, images(drawn, "train/PNEUMONIA"))).value_counts().max() >= 4


def test_the_archives_traps_are_there(drawn):
    seen = {path: header(path) for path in images(drawn)}
    luma = {
        pattern: {seen[p][2] for p in images(drawn, pattern)}
        for pattern in ("train/NORMAL", "train/PNEUMONIA", "test/*", "val/*")
    }
    assert len(luma["train/NORMAL"]) == len(luma["train/PNEUMONIA"]) == 1
    assert max(luma["train/NORMAL"]) < min(luma["train/PNEUMONIA"]) / 3
    assert luma["test/*"] == luma["val/*"] == luma["train/PNEUMONIA"]
    assert {p.parent.relative_to(drawn).as_posix() for p in seen if seen[p][1] == "RGB"} == {"train/PNEUMONIA"}
    well, sick = ([seen[p][0] for p in images(drawn, f"*/{name}")] for name in ("NORMAL", "PNEUMONIA"))
    assert np.median(well) < 1.35 < np.median(sick)
    by_digest = pd.Series(digests(drawn)).reset_index().groupby(0)["index"].agg(list)
    copies = [[drawn / p for p in paths] for paths in by_digest if len(paths) > 1]
    assert 1 <= len(copies) <= 10
    for paths in copies:
        assert {p.parent.parent.name for p in paths} == {"train"}
        assert len(set(map(patient, paths))) == 1


@pytest.mark.parametrize("n_images", [24, 25, 31, 40, 60, 199, 200, 401])
def test_every_size_has_enough_patients(n_images):
    for seed in range(10):
        files = pd.DataFrame(map(vars, synthetic._plan(n_images, seed)))
        assert files.path.nunique() == n_images
        patients = files.drop_duplicates(["kind", "number"]).value_counts(["split", "sick"])
        for split, least in (("train", 4), ("test", 2), ("val", 1)):
            assert min(patients[split, sick] for sick in (False, True)) >= least
        assert files.rgb.any()
        assert files.source.notna().any()


# --- whole or absent


def test_drawn_once_and_redrawn_on_another_recipe_or_a_lost_file(tmp_path, monkeypatch):
    root = synthetic.draw_dataset(tmp_path / "data", 24, 5)
    before = digests(root)
    assert set(recipe_of(root)) == {"drawn", "n_images", "seed", "code_sha256"}
    assert is_drawn(root)
    assert not is_drawn(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_radiograph", lambda *_, **__: pytest.fail("drawn again"))
        synthetic.draw_dataset(root, 24, 5)
    images(root)[0].unlink()
    assert digests(synthetic.draw_dataset(root, 24, 5)) == before  # the same seed, the same bytes
    assert not set(digests(synthetic.draw_dataset(root, 26, 6)).values()) & set(before.values())
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["data"]


def test_two_processes_at_once(tmp_path):
    code = "import sys; from pneumolib.data.synthetic import draw_dataset; draw_dataset(sys.argv[1], 24)"
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    home = Path(synthetic.__file__).parents[2]
    both = [subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum(b"24/24" in error for error in errors) == 1
    assert len(images(tmp_path / "data")) == 24


# --- the second hospital


def test_it_is_read_as_a_users_own_table(second):
    file = second.root / synthetic.TABLE
    own = read_manifest(DataParams(source="csv", root=str(file)), cache_dir=second.root.parent / "cache")
    assert own.fingerprint == second.fingerprint
    assert own.synthetic
    assert second.problems.empty
    assert set(second.table.site) == {"emergency", "ward"}
    assert second.table.group_id.nunique() < len(second.table)
    assert second.table.groupby("group_id")[["label", "site"]].nunique().max().max() == 1
    sites = second.table.groupby("site").mean_intensity.median()
    assert sites["ward"] - sites["emergency"] > 40
    most = max(file.number for file in synthetic._plan(2000, 1))
    assert most < synthetic._plan_second(100, 1).number.min()  # no child of the first hospital


def test_a_lost_table_is_drawn_again_with_the_same_bytes(tmp_path):
    table = synthetic.draw_second_hospital(tmp_path / "data", 24, 3)
    before = digests(table.parent)
    assert len(before) == 24 + 2
    table.unlink()
    assert recipe_of(table.parent) is None
    synthetic.draw_second_hospital(tmp_path / "data", 24, 3)
    assert digests(table.parent) == before


def test_images_that_the_study_has_too_are_left_out_with_their_whole_group(second):
    group = second.table.group_id.value_counts().index[0]
    own = second.table[second.table.group_id == group].head(1)
    left = without_shared(second.table, own)
    assert set(second.table.group_id) - set(left.group_id) == {group}
    assert len(without_shared(second.table, own.assign(pixel_hash="another"))) == len(second.table)
