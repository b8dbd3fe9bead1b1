"""The audit: what it must find in data made to hold it, and that it stays silent on data that do not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import save_image
from pneumolib.audit.groups import duplicate_findings, find_duplicates, group_findings, sensitivity_list, shared_groups
from pneumolib.audit.shortcuts import (
    ALL,
    BEFORE,
    fact_table,
    judge_shortcut,
    mitigation_findings,
    mitigation_table,
    shortcut_findings,
)
from pneumolib.data.facts import border_table, mask_centre, metadata_features
from pneumolib.data.manifest import read_manifest
from pneumolib.data.pixels import ImageSet
from pneumolib.data.split import split_manifest
from pneumolib.params import EvaluationParams, check
from pneumolib.reporting.words import as_checks

PARAMS = EvaluationParams(resamples=100)


@pytest.fixture(scope="module")
def table():
    """240 images of 120 patients, every fifth patient in test; label and file facts have nothing to do with each other."""
    rng, n = np.random.default_rng(0), 240
    patient = np.arange(n) // 2
    return pd.DataFrame({
        "image_id": [f"i{i:03d}" for i in range(n)], "label": patient % 2, "kind": np.where(patient % 2, "virus", "normal"),
        "group_id": [f"{'virus' if p % 2 else 'IM'}-{p}" for p in patient],
        "source_split": np.where(patient % 5 == 0, "test", "train"),
        "width_px": rng.integers(800, 2000, n), "height_px": rng.integers(800, 1600, n),
        "mode": np.where(rng.random(n) < 0.1, "RGB", "L"), "bytes": rng.integers(50_000, 500_000, n),
        "quantisation_sum": rng.choice([330, 600, 1858], n), "mean_intensity": rng.normal(120, 15, n),
        "sd_intensity": rng.normal(55, 6, n),
    })  # fmt: skip


def split_of(table) -> pd.DataFrame:
    """The source's own folders as the split."""
    return table[["image_id", "label", "kind", "group_id"]].assign(split=table.source_split)


def judge(table, **options):
    return judge_shortcut(metadata_features(table), split_of(table), PARAMS, seed=1, **options)


def said(finding) -> str:
    """What `result.json` and the page say of it."""
    return as_checks([finding])[finding.name]["sentence"]


def alone(table) -> pd.DataFrame:
    return fact_table(metadata_features(table), split_of(table), PARAMS, seed=1).set_index("feature")


@pytest.fixture
def named():
    """Numbers 1 and 2 of the archive's series, on both sides; 9 nowhere else."""
    groups = ["bacteria-1", "bacteria-1", "IM-2", "virus-9", "virus-1", "virus-1", "NORMAL2-IM-2", "IM-7"]
    kinds = [g.split("-")[0] if g[0] in "bv" else "normal" for g in groups]
    places = ["train"] * 3 + ["val"] + ["test"] * 4
    ids = [f"i{i}" for i in range(8)]
    return pd.DataFrame({"image_id": ids, "kind": kinds, "group_id": groups, "source_split": places, "label": 1})


def test_group_findings_count_from_the_table(named):
    findings = {f.name: f for f in group_findings(named, split_of(named))}
    assert [f.verdict for f in findings.values()] == ["ok", "note", "note", "ok"]
    assert "share 2 groups (3 test images). In 2 of the 2 the two sides" in said(findings["groups_merged_all"])
    crossing = named.assign(group_id=named.group_id.replace({"virus-1": "bacteria-1"}))
    findings = {f.name: f for f in group_findings(crossing, split_of(crossing))}
    assert (findings["groups_across_splits"].verdict, findings["groups_across_splits"].value) == ("error", 1)
    assert "In 1 of the 2 the two sides" in said(findings["groups_merged_all"])


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.sampled_from(["bacteria", "virus", "IM", "NORMAL2-IM"]), st.integers(1, 4), st.booleans()),
                min_size=2, max_size=20))  # fmt: skip
def test_shared_groups_are_those_on_both_sides_under_any_split(images):
    """The wider a key, the more test images it excludes; each exclusion has its number in the training pool."""
    series, _, in_test = zip(*images, strict=True)
    table = pd.DataFrame({"image_id": [f"i{i:02d}" for i in range(len(images))], "kind": series, "label": 1})
    table = table.assign(group_id=[f"{s}-{n}" for s, n, _ in images],
                         source_split=np.where(in_test, "test", "train"))  # fmt: skip
    shared = shared_groups(table)
    pool, test = (set(table.group_id[table.source_split == part]) for part in ("train", "test"))
    assert shared.shared[0] == len(pool & test)
    assert group_findings(table, split_of(table))[0].value == len(pool & test)
    assert shared.test_images.is_monotonic_increasing
    assert shared.groups.is_monotonic_decreasing
    left_out = sensitivity_list(table)
    assert (left_out.merged_bacteria_virus <= left_out.merged_all).all()
    assert len(left_out) == shared.test_images[2]


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.sampled_from(["train", "test"])), max_size=12))
def test_sets_of_duplicates_are_the_images_of_equal_pixels(images):
    ids = [f"i{i:02d}" for i in range(len(images))]
    pixels, files, places = (list(column) for column in (zip(*images, strict=True) if images else ([], [], [])))
    names = pd.DataFrame(
        {"image_id": ids, "path": ids, "label": files, "kind": "x", "group_id": ids, "source_split": places}
    )
    table = names.assign(pixel_hash=[str(p) for p in pixels], sha256=[f"{p}-{f}" for p, f, _ in images])
    found = find_duplicates(table, split_of(table))
    assert found.columns.tolist() == ["set", "how", "image_id", "path", "label", "group_id", "split"]
    expected = [rows for rows in table.groupby("pixel_hash").image_id.apply(list) if len(rows) > 1]
    assert sorted(found.groupby("set").image_id.apply(list)) == sorted(expected)
    counts = found.groupby("set")[["split", "group_id", "label"]].nunique()
    assert ((found.groupby("set").how.first() == "pixels") == (counts.label > 1)).all()
    several = [int((counts[column] > 1).sum()) for column in counts]
    findings, verdicts = duplicate_findings(found), ("note", "error", "warning", "error")
    assert [finding.value for finding in findings] == [len(expected), *several]
    assert [f.verdict for f in findings] == [v if f.value else "ok" for v, f in zip(verdicts, findings, strict=True)]


def test_a_label_in_the_quantisation_is_found(table):
    coded = table.assign(quantisation_sum=np.where(table.label, 1858, 330))
    shortcut = judge(coded)
    assert min(shortcut.cv.low, shortcut.test.low) > 0.75
    first = shortcut.coefficients.iloc[0]
    assert (first.feature, first.in_words) == ("log2_quantisation_sum", "coarser JPEG quantisation → pneumonia")
    assert first.odds_ratio == pytest.approx(np.exp(first.coefficient))
    assert alone(coded).iloc[0][["in_words", "pool"]].tolist() == [first.in_words, 1]
    findings = shortcut_findings("metadata_only", "file facts", shortcut)
    assert {f.name: f.verdict for f in findings} == dict.fromkeys(["metadata_only_cv", "metadata_only_test"], "warning")
    alone_in_pool = judge_shortcut(
        metadata_features(coded), split_of(coded)[lambda t: t.split != "test"], PARAMS, seed=1
    )
    assert alone_in_pool.test is None
    assert [f.name for f in shortcut_findings("metadata_only", "file facts", alone_in_pool)] == ["metadata_only_cv"]
    assert "most weight: coarser JPEG quantisation → pneumonia" in said(findings[0])
    assert f"AUROC of {shortcut.cv.value:.3f} ({shortcut.cv.low:.3f} to {shortcut.cv.high:.3f})" in said(findings[0])


def test_a_shortcut_turned_round_on_test(table):
    in_test = table.source_split == "test"
    coded = table.assign(quantisation_sum=np.where((table.label == 1) ^ in_test, 1858, 330))
    assert alone(coded).iloc[0][["pool", "test", "test_low"]].tolist() == [1, 0, 0]
    finding = shortcut_findings("x", "file facts", judge(coded))[1]
    assert (finding.verdict, finding.high < 0.3) == ("warning", True)
    assert "points the other way" in said(finding)


def test_without_a_shortcut_the_interval_covers_a_half_whatever_the_order_of_rows(table):
    shortcut, again = judge(table), judge(table.sample(frac=1, random_state=3))
    for score, same in ((shortcut.cv, again.cv), (shortcut.test, again.test)):
        assert score.low < 0.5 < score.high
        assert score[:3] == pytest.approx(same[:3])
    assert {finding.verdict for finding in shortcut_findings("x", "file facts", shortcut)} <= {"ok", "note"}
    assert shortcut.predictions.split.value_counts().to_dict() == {"pool": 192, "test": 48}


def test_folds_keep_groups_whole():
    """Features that name the patient and nothing else: recognising patients must not pay."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 6)
    values = rng.normal(size=(60, 80))[patient] + rng.normal(scale=0.01, size=(360, 80))
    ids = [f"i{i}" for i in range(360)]
    split = pd.DataFrame({"image_id": ids, "split": "train", "label": patient % 2, "kind": "x"})
    features = pd.DataFrame(values, index=ids)
    by_patient = judge_shortcut(features, split.assign(group_id=patient), PARAMS, seed=1)
    by_image = judge_shortcut(features, split.assign(group_id=ids), PARAMS, seed=1)
    assert by_image.cv.value > 0.99
    assert by_patient.cv.low < 0.5 < by_patient.cv.high


ONE_CLASS = "the training pool does not hold both classes"
FEW = "a class has fewer than two groups"


@pytest.mark.parametrize(
    ("kept", "cv", "test", "in_cv", "in_test"),
    [
        (lambda t: t[(t.source_split == "train") | (t.label == 1)], "", "test does not hold both classes", True, False),
        (lambda t: t[t.label == 0], ONE_CLASS, ONE_CLASS, False, False),
        (lambda t: t[(t.label == 1) | t.group_id.isin(["IM-2", "IM-4", "IM-6", "IM-10"])],
         "normal has 3 group(s), fewer than the 5 folds", FEW, False, True),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_says_why(table, kept, cv, test, in_cv, in_test):
    shortcut = judge(kept(table))
    assert (shortcut.cv.reason, shortcut.test.reason) == (cv, test)
    assert (shortcut.cv.value >= 0, shortcut.test.value >= 0) == (in_cv, in_test)
    assert set(shortcut.predictions.split) == {name for name, judged in (("pool", in_cv), ("test", in_test)) if judged}
    finding = shortcut_findings("x", "file facts", shortcut)[1]
    assert finding.verdict == "note"
    assert f"not computable, because {test}" in said(finding)
    assert alone(kept(table)).test_low.isna().all()


def test_constant_features_are_listed_and_images_without_features_refused(table):
    flat = table.assign(mode="L", quantisation_sum=330)
    constant = judge(flat).coefficients.set_index("feature").loc[["mode_L", "log2_quantisation_sum"]]
    assert set(constant.in_words) == {"constant, tells nothing"}
    assert (constant.coefficient == 0).all()
    features, split = metadata_features(table), split_of(table)
    shortcut = judge_shortcut(features * 0 + 10.5, split, PARAMS, 1)
    assert shortcut.cv.reason == "all 9 features are constant on the training pool"
    with pytest.raises(KeyError, match="i003"):
        fact_table(features.drop("i003"), split, PARAMS, 1)


IDS = pd.DataFrame({"image_id": list("abc")})


@pytest.mark.parametrize(("shape", "fraction"), [((32, 32, 1), 0.125), ((45, 61, 1), 0.05), ((64, 50, 3), 0.3)])
def test_nothing_of_the_centre_reaches_a_feature(shape, fraction):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, *shape), dtype=np.uint8)
    in_frame = mask_centre(np.ones_like(pixels), fraction).astype(bool)
    other = np.where(in_frame, pixels, 255 - pixels)
    assert (pixels != other).any()
    np.testing.assert_array_equal(mask_centre(other, fraction), np.where(in_frame, pixels, 0))
    of_one, of_other = (border_table([ImageSet(IDS, images)], fraction) for images in (pixels, other))
    pd.testing.assert_frame_equal(of_one, of_other)


def test_a_label_in_the_border_is_found_and_one_in_the_centre_is_not(table):
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, (len(table), 40, 40, 1), dtype=np.uint8)
    for place, found in ((slice(0, 3), True), (slice(15, 25), False)):
        coded = pixels.copy()
        coded[:, place, 15:25] += (15 * table.label).to_numpy(np.uint8)[:, None, None, None]
        split = split_of(table)
        parts = [ImageSet(split[split.split == p], coded[split.split == p]) for p in ("test", "train")]
        features = border_table(parts)
        assert features.index.tolist() == [i for part in parts for i in part.table.image_id]
        shortcut = judge_shortcut(features, split, PARAMS, seed=1, l2=100)
        assert (shortcut.cv.low > 0.9, shortcut.test.low > 0.7) == (found, found)
        assert found or shortcut.cv.low < 0.5
        assert "most weight" not in said(shortcut_findings("border_only", "the border", shortcut)[0])


# --- mitigations


@pytest.fixture(scope="module")
def tell_tale(tmp_path_factory):
    """Even light from one side, as bright in all: normal was saved at a quality of 95 and wide, pneumonia at 60, square."""
    folder, rng = tmp_path_factory.mktemp("tell_tale"), np.random.default_rng(0)
    for n in range(1, 33):
        for name, width, quality in (
            (f"NORMAL/IM-{n:04d}-0001", 96, 95),
            (f"PNEUMONIA/person{n}_virus_{n}", 64, 60),
        ):
            scene = np.add.outer(np.linspace(0, 30 * rng.uniform(), 64), np.full(width, rng.uniform(80, 160)))
            save_image(folder / f"set/{'train' if n < 25 else 'test'}/{name}.jpeg", scene, quality=quality)
    params = check({
        "data": {"root": str(folder / "set"), "val_folder": "leave_out"}, "image": {"size_px": 32, "crop_border": 0.1},
        "split": {"validation_fraction": 0.2}, "evaluation": {"resamples": 100},
        "audit": {"mitigation_images": 1000, "mitigation_quality": 60, "folds": 3},
    })  # fmt: skip
    manifest = read_manifest(params.data, folder / "cache")
    return manifest, split_manifest(manifest.table, params.split), params


def test_mitigations_remove_quality_and_shape(tell_tale):
    manifest, split, params = tell_tale
    table = mitigation_table(manifest, split, params).set_index("mitigation")
    assert table.cv[BEFORE] == table.test[BEFORE] == 1.0
    assert table.cv["fit: crop"] == 1.0  # the quality still tells
    assert table.cv["reencode_quality: 60"] == 1.0  # the shape still tells
    assert (table.images == len(manifest.table)).all()
    assert table.index[0] == BEFORE
    of_network = ["no mitigation", "this study's settings", "all three"]
    assert list(table.index[-3:]) == [f"at 32 x 32 px, {what}" for what in of_network]
    assert table.seen.tolist() == ["file"] * 6 + ["network"] * 3
    # In these soft pictures nothing is left but chance.
    assert table.cv_low[ALL] < 0.5 < table.cv_high[ALL]
    files, network, study = mitigation_findings(table.reset_index())
    assert (files.value, network.value, study.value) == (table.cv[ALL], table.cv.iloc[-1], table.cv.iloc[-2])
    assert "from 1.000 (0." in said(files)
    assert table.change[ALL] == pytest.approx(table.cv[ALL] - 1)
    assert table.change_low[ALL] < table.change[ALL] < table.change_high[ALL] < 0


def test_a_sample_holds_whole_groups_and_both_classes_and_needs_no_test(tell_tale):
    manifest, split, params = tell_tale
    few = params.model_copy(update={"audit": params.audit.model_copy(update={"mitigation_images": 30})})
    table = mitigation_table(manifest, split[split.split != "test"], few)
    assert table.images.between(24, 30).all()
    assert table.cv.notna().all()
    assert table.test.isna().all()
    assert mitigation_findings(table)[0].value == table.cv[table.mitigation == ALL].item()
