"""The drawn data sets: the archive's layout, names and traps; a second hospital's table; whole or absent."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumolib.data import synthetic
from pneumolib.data.layout import MADE_BY, MARKER, is_drawn, recipe_of
from pneumolib.data.manifest import read_manifest
from pneumolib.data.split import split_external, without_shared
from pneumolib.data.tables import CSV_COLUMNS
from pneumolib.errors import DataError
from pneumolib.params import DataParams, ExternalParams

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


def test_one_image_does_not_depend_on_those_drawn_before():
    alone = synthetic.draw_radiograph("virus", 3, 1)
    synthetic.draw_radiograph("bacteria", 3, 1)
    np.testing.assert_array_equal(alone, synthetic.draw_radiograph("virus", 3, 1))
    assert (alone.dtype, alone.ndim) == (np.uint8, 2)
    assert 220 <= alone.shape[1] <= 520
    assert alone.std() > 20
    with pytest.raises(ValueError, match="fungus"):
        synthetic.draw_radiograph("fungus")


def test_layout_and_prevalence(drawn):
    count = pd.Series([f"{p.parent.parent.name}/{p.parent.name}" for p in images(drawn)]).value_counts()
    assert count.sum() == 200
    assert count["val/NORMAL"] == count["val/PNEUMONIA"] == 8
    assert count["test/NORMAL"] + count["test/PNEUMONIA"] == 50
    assert count["test/PNEUMONIA"] / 50 == pytest.approx(0.625, abs=0.02)
    assert count["train/PNEUMONIA"] / (200 - 66) == pytest.approx(0.74, abs=0.02)


def test_names_and_numbers_follow_the_archive(drawn):
    sick = [(*patient(p), int(SICK.fullmatch(p.name)["serial"])) for p in images(drawn, "*/PNEUMONIA")]
    for kind in ("bacteria", "virus"):
        pairs = sorted((serial, number) for k, number, serial in sick if k == kind)
        numbers = [number for _, number in pairs]
        assert numbers == sorted(numbers)
        assert len({serial for serial, _ in pairs}) == len(pairs)
    assert any(WELL.fullmatch(p.name)[3] for p in images(drawn, "*/NORMAL"))


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
    colour = [p for p in seen if seen[p][1] == "RGB"]
    assert {seen[p][1] for p in seen} == {"L", "RGB"}
    assert {p.parent.relative_to(drawn).as_posix() for p in colour} == {"train/PNEUMONIA"}
    assert 0.02 < len(colour) / len(images(drawn, "train/PNEUMONIA")) < 0.1
    well, sick = ([seen[p][0] for p in images(drawn, f"*/{name}")] for name in ("NORMAL", "PNEUMONIA"))
    assert np.median(well) == pytest.approx(1.24, abs=0.08)
    assert np.median(sick) == pytest.approx(1.49, abs=0.08)
    assert np.quantile(well, 0.9) > np.quantile(sick, 0.25)  # shapes overlap
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


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"n_images is 23.*24"):
        synthetic.draw_dataset(tmp_path / "data", 23)
    assert not any(tmp_path.iterdir())


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


def test_an_interrupted_drawing_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupted(n_images):
        calls, draw = [], synthetic.draw_radiograph

        def stop_midway(*args, **options):
            calls.append(args)
            if len(calls) > 5:
                raise KeyboardInterrupt
            return draw(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(synthetic, "draw_radiograph", stop_midway)
            with pytest.raises(KeyboardInterrupt):
                synthetic.draw_dataset(tmp_path / "data", n_images)

    interrupted(24)
    assert not any(p.is_dir() for p in tmp_path.iterdir())
    before = digests(synthetic.draw_dataset(tmp_path / "data", 24))
    interrupted(25)
    assert digests(tmp_path / "data") == before


@pytest.mark.parametrize("name", ["notes.txt", "train/NORMAL/IM-0001-0001.jpeg", MARKER])
def test_a_foreign_folder_is_not_overwritten(tmp_path, name):
    mine = tmp_path / "data" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    with pytest.raises(FileExistsError, match="nothing was changed"):
        synthetic.draw_dataset(tmp_path / "data", 24)
    assert mine.read_text() == "{}"


def test_a_file_put_into_a_drawing_is_not_lost(tmp_path):
    root = synthetic.draw_dataset(tmp_path / "data", 24)
    for name in ("notes.txt", "train/NORMAL/mine.jpeg"):
        (root / name).write_text("mine")
        with pytest.raises(FileExistsError, match="nothing was changed"):
            synthetic.draw_dataset(root, 26)
        assert (root / name).read_text() == "mine"
        (root / name).unlink()


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
    assert set(CSV_COLUMNS) < set(pd.read_csv(file, dtype=str).columns)
    own = read_manifest(DataParams(source="csv", root=str(file)), cache_dir=second.root.parent / "cache")
    assert own.fingerprint == second.fingerprint
    assert own.synthetic
    assert second.problems.empty
    assert second.table.label.mean() == pytest.approx(0.4, abs=0.01)
    assert set(second.table.site) == {"emergency", "ward"}
    assert second.table.group_id.nunique() < len(second.table)
    assert second.table.groupby("group_id")[["label", "site"]].nunique().max().max() == 1


def test_its_films_differ_from_the_first_hospitals_and_not_by_class(second):
    table = second.table.assign(aspect=second.table.width_px / second.table.height_px)
    assert table.aspect.max() < 1.25
    by_class = table.groupby(["site", "label"])[["aspect", "width_px"]].median()
    for site in ("emergency", "ward"):
        well, sick = by_class.loc[site].to_numpy()
        np.testing.assert_allclose(well, sick, rtol=0.05)
    grey = table.groupby("site").mean_intensity.median()
    assert grey["ward"] - grey["emergency"] > 40
    assert {path.rsplit(".", 1)[1] for path in table.path} == {"jpeg", "png"}
    film = np.asarray(Image.open(second.root / table.path[table.site == "emergency"].iloc[0]).convert("L"), float)
    edge = np.concatenate([film[-12:].ravel(), film[:, -12:].ravel()])
    assert edge.mean() < 12
    assert film[: len(film) // 4].max() > 240  # the lead letter
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


@pytest.mark.parametrize("marker", [None, {"drawn": True}])
def test_a_table_of_somebody_elses_is_not_lost(tmp_path, marker):
    (tmp_path / "table.csv").write_text("mine")
    if marker:
        (tmp_path / MARKER).write_text(json.dumps({"made_by": MADE_BY, "n_images": 0, "recipe": marker}))
    with pytest.raises(DataError, match=r"table\.csv; nothing was changed"):
        read_manifest(DataParams(source="synthetic", hospital=2, root=str(tmp_path), n_images=24))
    assert (tmp_path / "table.csv").read_text() == "mine"


def test_it_is_cut_into_two_parts_with_the_class_ratio_or_refused(second):
    cut = split_external(second.table, ExternalParams(recalibration_fraction=0.4))
    assert set(cut.split) == {"external"}
    shares = cut.groupby("part").label.mean()
    assert abs(shares["recalibration"] - shares["evaluation"]) < 0.1
    assert (cut.part == "recalibration").mean() == pytest.approx(0.4, abs=0.08)
    few = second.table[second.table.kind != "virus"].groupby("label").head(1)
    with pytest.raises(DataError, match=r"recalibration part .* 0 group\(s\) of normal and 0 of pneumonia"):
        split_external(few, ExternalParams())


def test_images_that_the_study_has_too_are_left_out_with_their_whole_group(second):
    group = second.table.group_id.value_counts().index[0]
    own = second.table[second.table.group_id == group].head(1)
    left = without_shared(second.table, own)
    assert set(second.table.group_id) - set(left.group_id) == {group}
    assert len(without_shared(second.table, own.assign(pixel_hash="another"))) == len(second.table)
