"""The split: groups never cross, the class ratio is kept, the order of rows plays no part."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumolib.data.split import check_split, split_external, split_manifest
from pneumolib.errors import DataError
from pneumolib.params import ExternalParams, SplitParams


@pytest.fixture(scope="module")
def table():
    """1,000 images of 500 patients; bacteria in groups of one to seven."""
    rng = np.random.default_rng(0)
    rows = []
    for kind, label, patients in (("bacteria", 1, 120), ("virus", 1, 150), ("normal", 0, 230)):
        for patient in range(patients):
            for image in range(int(rng.integers(1, 8)) if kind == "bacteria" else 1 + patient % 2):
                place = "test" if patient % 8 == 0 else "train"
                rows.append([f"{kind}{patient:03d}_{image}", place, label, kind, f"{kind}-{patient}"])
    table = pd.DataFrame(rows, columns=["image_id", "source_split", "label", "kind", "group_id"])
    return table.assign(pixel_hash=table.image_id)


def shuffled(table: pd.DataFrame, random) -> pd.DataFrame:
    return table.iloc[random.sample(range(len(table)), len(table))]


@st.composite
def tables(draw):
    """Any patients, in any order of rows: few or many, of one kind or two, some of whose images are equal."""
    patients = draw(st.lists(st.tuples(st.sampled_from("bvn"), st.integers(1, 4), st.booleans()), max_size=15))
    if draw(st.integers(0, 3)):  # in three of four tables enough to split
        patients += [(kind, 1, test) for kind in "nb" for test in (False, False, False, True)] * 2
    patients = draw(st.permutations(patients or [("n", 1, False)]))
    rows = [
        (f"p{p:02d}", kind, "test" if test else "train") for p, (kind, n, test) in enumerate(patients) for _ in range(n)
    ]
    table = pd.DataFrame(rows, columns=["group_id", "kind", "source_split"])
    equal = draw(st.lists(st.tuples(*[st.integers(0, len(rows) - 1)] * 2), max_size=3))
    content = pd.Series(range(len(rows)))
    for one, other in equal:
        content[one] = content[other]
    return table.assign(
        image_id=[f"i{n:03d}" for n in range(len(rows))],
        label=(table.kind != "n").astype(int),
        pixel_hash=content.astype(str),
        site="",
    )


def outcome(cut, table, params) -> pd.DataFrame | str:
    """The split, or why it was refused."""
    try:
        return cut(table, params)
    except DataError as fault:
        return str(fault)


@settings(deadline=None, max_examples=30)
@given(tables(), st.integers(0, 3), st.sampled_from([0.1, 0.25, 0.4]), st.sampled_from([10.0, 50.0]), st.randoms())
def test_any_table_is_split_fairly_or_refused_whatever_the_order_of_its_rows(table, seed, fraction, tolerance, random):
    params = SplitParams(seed=seed, validation_fraction=fraction, ratio_tolerance_points=tolerance)
    split, other = (outcome(split_manifest, rows, params) for rows in (table, shuffled(table, random)))
    if isinstance(split, str):
        assert other == split
        return
    pd.testing.assert_frame_equal(split, other)
    assert split.image_id.tolist() == table.image_id.tolist()
    assert ((split.split == "test") == (table.source_split == "test")).all()
    assert split.groupby("group_id").split.nunique().max() == 1
    pool = split[split.split != "test"]
    assert pool.assign(content=table.pixel_hash).groupby("content").split.nunique().max() == 1
    assert abs(pool.label[pool.split == "val"].mean() - pool.label.mean()) <= tolerance / 100
    assert split.groupby("split").label.nunique().to_dict() == {"test": 2, "train": 2, "val": 2}


@settings(deadline=None, max_examples=15)
@given(tables(), st.integers(0, 3), st.randoms())
def test_another_source_is_cut_by_whole_groups_or_refused(table, seed, random):
    params = ExternalParams(seed=seed, recalibration_fraction=0.4)
    cut, other = (outcome(split_external, rows, params) for rows in (table, shuffled(table, random)))
    if isinstance(cut, str):
        assert "both classes are needed" in cut
        return
    pd.testing.assert_frame_equal(cut, other)
    assert cut.groupby("group_id").part.nunique().max() == 1
    assert cut.groupby("part").label.nunique().to_dict() == {"evaluation": 2, "recalibration": 2}


def test_literal_groups_of_one_seed(table):
    """A change of the hashing would give everybody other splits under the same seed; it must not go unseen."""
    split = split_manifest(table, SplitParams(seed=1))
    chosen = sorted(split.group_id[split.split == "val"].unique())
    assert chosen[:3] == ["bacteria-103", "bacteria-105", "bacteria-108"]
    assert not split.equals(split_manifest(table, SplitParams(seed=2)))


def test_test_is_cut_by_patient_from_a_source_that_names_none(table):
    unsplit = table.assign(source_split="train")
    first, second = (split_manifest(unsplit, SplitParams(test_fraction=0.25, seed=seed)) for seed in (1, 2))
    assert set(first.image_id[first.split == "test"]) == set(second.image_id[second.split == "test"])
    assert not first.equals(second)
    shares = (first.split == "test").groupby(first.kind).mean()
    assert (shares - 0.25).abs().max() < 0.06
    assert first.groupby("group_id").split.nunique().max() == 1
    with pytest.raises(DataError, match=r"the test split has 0 .* set split\.test_fraction"):
        split_manifest(unsplit, SplitParams())
    with pytest.raises(DataError, match=r"split\.test_fraction 0\.25: the source names \d+ test images already"):
        split_manifest(table, SplitParams(test_fraction=0.25))
    spelt = table.assign(group_id=table.group_id.replace({"normal-0": "Normal-001"}))
    with pytest.raises(DataError, match="1 group"):
        split_manifest(spelt, SplitParams())


def test_what_is_refused_and_why(table):
    in_pool = (table.kind == "bacteria") & (table.source_split == "train")
    giant = table.assign(group_id=table.group_id.where(~in_pool, "all-bacteria"))
    with pytest.raises(DataError, match=r"Largest groups: all-bacteria \(\d+ images\)"):
        split_manifest(giant, SplitParams())
    leaking = table.assign(group_id=table.group_id.replace({"normal-0": "normal-1"}))
    with pytest.raises(DataError, match=r"1 group\(s\) appear in more than one split: normal-1"):
        split_manifest(leaking, SplitParams())
    few = table[(table.source_split == "test") | table.group_id.isin(["normal-1", "virus-1", "bacteria-1"])]
    with pytest.raises(DataError, match=r"the val split has 0 group\(s\) of normal and 0 of pneumonia; .* Raise"):
        split_manifest(few, SplitParams(validation_fraction=0.1))
    split = split_manifest(table, SplitParams())
    skewed = split[~((split.split == "val") & (split.label == 0) & (split.image_id.str[-1] == "0"))]
    with pytest.raises(DataError, match=r"pneumonia is [\d.]+% of validation but [\d.]+% of the training pool"):
        check_split(skewed, 2)
