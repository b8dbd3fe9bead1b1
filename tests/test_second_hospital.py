"""The second hospital: a user's table of paths, other films and other children, cut into two parts."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumolib.data import second_hospital, synthetic
from pneumolib.data.layout import MADE_BY, MARKER, is_drawn, recipe_of
from pneumolib.data.manifest import read_manifest
from pneumolib.data.split import SplitError, split_external, without_shared
from pneumolib.data.tables import CSV_COLUMNS
from pneumolib.errors import DataError
from pneumolib.params import DataParams, ExternalParams


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Its manifest, read through the source that the demo names."""
    root = tmp_path_factory.mktemp("elsewhere")
    params = DataParams(source="synthetic", hospital=2, root=str(root / "images"), n_images=60)
    return read_manifest(params, cache_dir=root / "cache")


def test_it_is_read_as_a_users_own_table(drawn):
    file = drawn.root / second_hospital.TABLE
    table = pd.read_csv(file, dtype=str)
    assert set(CSV_COLUMNS) < set(table.columns)
    own = read_manifest(DataParams(source="csv", root=str(file)), cache_dir=drawn.root.parent / "cache")
    assert own.fingerprint == drawn.fingerprint
    assert own.synthetic
    assert drawn.problems.empty
    assert drawn.table.label.mean() == pytest.approx(0.4, abs=0.01)
    assert set(drawn.table.site) == {"emergency", "ward"}
    assert drawn.table.group_id.nunique() < len(drawn.table)
    assert drawn.table.groupby("group_id")[["label", "site"]].nunique().max().max() == 1


def test_its_films_differ_from_the_first_hospitals_and_not_by_class(drawn):
    table = drawn.table.assign(aspect=drawn.table.width_px / drawn.table.height_px)
    assert table.aspect.max() < 1.25
    by_class = table.groupby(["site", "label"])[["aspect", "width_px"]].median()
    for site in ("emergency", "ward"):
        well, sick = by_class.loc[site].to_numpy()
        np.testing.assert_allclose(well, sick, rtol=0.05)
    grey = table.groupby("site").mean_intensity.median()
    assert grey["ward"] - grey["emergency"] > 40
    assert {path.rsplit(".", 1)[1] for path in table.path} == {"jpeg", "png"}
    film = np.asarray(Image.open(drawn.root / table.path[table.site == "emergency"].iloc[0]).convert("L"), float)
    edge = np.concatenate([film[-12:].ravel(), film[:, -12:].ravel()])
    assert edge.mean() < 12
    assert film[: len(film) // 4].max() > 240  # the lead letter


def test_a_lost_table_is_drawn_again_with_the_same_bytes(tmp_path):
    table = second_hospital.draw_second_hospital(tmp_path / "data", 24, 3)
    assert is_drawn(table.parent)
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in table.parent.rglob("*.*")}
    assert len(before) == 24 + 2
    table.unlink()
    assert recipe_of(table.parent) is None
    second_hospital.draw_second_hospital(tmp_path / "data", 24, 3)
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in table.parent.rglob("*.*")} == before


def test_no_child_of_the_first_hospital_is_drawn():
    most = max(file.number for file in synthetic._plan(2000, 1))
    assert most < 2000
    assert min(file.number for file in second_hospital._plan(100, 1)) > 100_000  # more images cannot be asked for


@pytest.mark.parametrize("marker", [None, {"drawn": True}])
def test_a_table_of_somebody_elses_is_not_lost(tmp_path, marker):
    (tmp_path / "table.csv").write_text("mine")
    if marker:
        (tmp_path / MARKER).write_text(json.dumps({"made_by": MADE_BY, "n_images": 0, "recipe": marker}))
    with pytest.raises(DataError, match=r"table\.csv; nothing was changed"):
        read_manifest(DataParams(source="synthetic", hospital=2, root=str(tmp_path), n_images=24))
    assert (tmp_path / "table.csv").read_text() == "mine"


def test_whole_groups_are_set_apart_with_the_class_ratio(drawn):
    cut = split_external(drawn.table.sample(frac=1, random_state=1), ExternalParams(recalibration_fraction=0.4))
    assert set(cut.split) == {"external"}
    assert cut.groupby("group_id").part.nunique().max() == 1
    shares = cut.groupby("part").label.mean()
    assert abs(shares["recalibration"] - shares["evaluation"]) < 0.1
    assert (cut.part == "recalibration").mean() == pytest.approx(0.4, abs=0.08)
    assert list(cut.image_id) == sorted(drawn.table.image_id)
    other = split_external(drawn.table, ExternalParams(recalibration_fraction=0.4, seed=2))
    assert list(other.part) != list(cut.part)


def test_a_part_without_a_class_is_refused(drawn):
    few = drawn.table[drawn.table.kind != "virus"].groupby("label").head(1)
    with pytest.raises(SplitError, match=r"recalibration part .* 0 group\(s\) of normal and 0 of pneumonia"):
        split_external(few, ExternalParams())


def test_images_that_the_study_has_too_are_left_out_with_their_whole_group(drawn):
    group = drawn.table.group_id.value_counts().index[0]
    own = drawn.table[drawn.table.group_id == group].head(1)
    left = without_shared(drawn.table, own)
    assert set(drawn.table.group_id) - set(left.group_id) == {group}
    assert len(without_shared(drawn.table, own.assign(pixel_hash="another"))) == len(drawn.table)
