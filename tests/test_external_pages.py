"""What a page says of a frozen model on another source: tables, sentences and figures, for a usual source and for odd ones."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from test_evaluation_pages import alts
from test_external import drawn, known

from pneumolib import evaluation
from pneumolib.data.facts import KINDS
from pneumolib.evaluation.calibration import freeze
from pneumolib.params import EvaluationParams
from pneumolib.reporting import evaluation_plots, words
from pneumolib.reporting.cards import checklist
from pneumolib.reporting.comparing import leaderboard
from pneumolib.reporting.prose import headline
from pneumolib.reporting.results import plain
from test_reporting import result

PARAMS = EvaluationParams(resamples=60)
OPTIONS = {"params": PARAMS, "seed": 1}
INTERNAL = pd.concat([drawn(160, "val", 0.6, 0, 1), drawn(160, "test", 0.6, 0, 2)], ignore_index=True)


def elsewhere(case: str = "") -> pd.DataFrame:
    """Predictions of another source: shifted, unless a case says what is odd about it."""
    shift = {"alike": 0.0, "shifted": 1.5}.get(case, 0.3)
    rows = drawn(240, "external", 0.4, shift, 4).assign(site="")
    rows["part"] = np.where((np.arange(240) // 2) % 3 == 0, "recalibration", "evaluation")
    if case == "chance":
        rows = rows.assign(logit=np.random.default_rng(1).normal(0, 1, 240))
    if case == "turned":
        rows = rows.assign(label=1 - rows.label)
    if case == "one child a class":
        rows = rows.assign(group_id=rows.label.astype(str))
    return rows.assign(probability=expit(rows.logit))


def facts_of(n: int, grey: float) -> pd.DataFrame:
    ids = [f"external{i:04d}" for i in range(n)]
    facts = pd.DataFrame(0.5, index=range(n), columns=list(KINDS)).assign(image_id=ids)
    return facts.assign(mean_grey=np.where(np.arange(n) % 2, grey, 120))


def found_of(rows: pd.DataFrame, grey: float = 150, shown: bool = False, rule: str = "sensitivity") -> tuple[dict, str]:
    """`checks.external` as the notebook writes it, and all that the page would say before its answer."""
    params = PARAMS.model_copy(update={"threshold_rule": rule})
    frozen, calibration = freeze(INTERNAL, params)
    threshold, rows, internal = frozen.value, calibration.applied(rows), calibration.applied(INTERNAL)
    facts, reference = facts_of(len(rows), grey), known()
    drift, ood_warnings = evaluation.drift_table(reference, facts), evaluation.ood_warning_table(reference, facts)
    warned = pd.Series(facts.mean_grey.to_numpy() > 140, rows.image_id)
    errors = evaluation.errors_by_warning(rows, warned, threshold, PARAMS)
    metrics = evaluation.metric_table(rows, "external", threshold, **OPTIONS)
    own_metrics = evaluation.metric_table(internal, "test", threshold, **OPTIONS)
    differences = evaluation.unpaired_differences(metrics, own_metrics, names=("external", "internal"))
    local, refitted = evaluation.recalibrate(rows, frozen, calibration, params)
    thresholds = evaluation.threshold_differences(rows, threshold, local, **OPTIONS)
    calibrated = evaluation.external_calibrations(rows, calibration, refitted, 0.6)
    calibrations = evaluation.external_calibration_table(calibrated, **OPTIONS)
    both = pd.concat([internal[internal.split == "test"], rows], ignore_index=True)
    named = rows.assign(site=np.where(np.arange(len(rows)) % 4 < 2, "north", "south"))
    by_site, kept = evaluation.recalibrate_sites(named, frozen, calibration, params, 1)
    bands = evaluation.curve_bands(both, **OPTIONS, splits=("test", "external"))
    bins = {method: evaluation.reliability(calibrated, calibrated[method]) for method in calibrations.method}
    plots = [
        evaluation_plots.drift(drift), evaluation_plots.frozen(bands, differences),
        evaluation_plots.score_histograms(both, threshold, local.value), evaluation_plots.reliability(bins),
    ]  # fmt: skip
    tables = [
        words.table("drift", drift), words.table("external_differences", differences),
        words.table("thresholds", thresholds, threshold, local), words.table("external_calibration", calibrations),
        words.table("errors_by_warning", errors), *([words.table("by_site", by_site)] if len(by_site) else []),
    ]  # fmt: skip
    sentences = [
        words.say("external.drift", ood_warnings), words.say("external.threshold", thresholds, local, 80),
        words.say("external.calibration", calibrations, 0.6, 0.4, refitted), words.say("external.kept", kept),
    ]  # fmt: skip
    columns = evaluation.subgroup_columns(named, [])
    parts = evaluation.subgroup_table(rows, "external", threshold, **OPTIONS, columns=columns)
    found = {"run": "03_baseline_cnn", "images": len(rows), "groups": rows.group_id.nunique(), "threshold": threshold,
             "metrics": metrics, "differences": differences, "thresholds": thresholds, "ood_warnings": ood_warnings, "subgroups": parts,
             "recalibration": {"images": 80, "threshold": local.value, "rule": local.rule,
                               "kept": local.chosen_on == "validation"}}  # fmt: skip
    said = [t.to_string() for t in tables] + [s.data for s in sentences]
    return plain(found), "\n".join(said + (alts(plots) if shown else [plot.alt for plot in plots]))


def tried(found: dict, **changes):
    none = {"notebook": "08_external_validation", "metrics": {}, "threshold": None}
    return result("08_external_validation", checks={"external": found}, **none | changes)


@pytest.mark.parametrize(
    ("case", "opening"),
    [
        ("shifted", "**In part**: it still ranks the images, and its threshold does not carry over (specificity moved)."),
        ("alike", "**No significant loss**, which is no proof that there is none"),
        ("chance", "**No, it does not hold.** On 240 images of 120 groups from another source, the AUROC of <code>03_baseline_cnn</code> is"),
        ("one child a class", "**Whether it holds cannot be said**: an interval cannot be computed."),
    ],
)  # fmt: skip
def test_the_answer_follows_the_intervals(case, opening):
    found, said = found_of(elsewhere(case), shown=case in ("shifted", "one child a class"))
    answer = words.say("external.answer", tried(found)).data
    assert answer.startswith(opening)
    assert "Between its sites: sensitivity from" in answer
    assert "synthetic" not in answer
    assert "**The images are synthetic**" in words.say("external.answer", tried(found, synthetic=True)).data
    for text in (said, answer):
        assert not re.search(r"\bnan\b", text.lower())
    assert "**50% of the images get an out-of-distribution warning**" in said
    assert "Of the study's own validation images 1.0% do." in said


@pytest.mark.parametrize("rule", ["binormal", "sensitivity"])
def test_a_source_whose_labels_are_the_wrong_way_round_has_a_whole_page(rule):
    """Its AUROC lies below one half: the first sentence says so, and what cannot be chosen there is named."""
    found, said = found_of(elsewhere("turned"), shown=True, rule=rule)
    answer = words.say("external.answer", tried(found)).data
    assert answer.startswith("**No, it does not hold.**")
    assert headline(tried(found))[0].startswith("03_baseline_cnn does not hold on the other source: AUROC 0.0")
    assert "The calibration cannot be fitted again, and the frozen one is kept: the slope is -" in said
    not_applied = "**The study's own rule cannot be applied** to the 80 images of the recalibration part: threshold_rule binormal: "
    assert (not_applied in said) == (rule == "binormal")
    assert ("The rule of the threshold cannot be applied to this source" in answer) == (rule == "binormal")
    for site in ("north", "south"):
        named = (
            f"**{site}** keeps the frozen threshold, because the rule cannot be applied there: threshold_rule binormal"
        )
        assert (named in said) == (rule == "binormal")
    assert not re.search(r"\bnan\b", f"{said} {answer}".lower())


def test_it_has_a_headline_and_an_item_and_no_place_among_the_trained():
    found, said = found_of(elsewhere("shifted"), grey=120)
    assert "**0% of the images get an out-of-distribution warning**" in said
    trained, outside = result(), tried(found)
    expected = (
        r"03_baseline_cnn ranks the images of the other source, but its threshold does not hold: AUROC 0\.\d{3} \(.*\) on "
        r"240 images, a change of [+-]0\.\d{3} \(.*\) from its own test\."
    )
    assert re.fullmatch(expected, headline(outside)[0])
    assert list(leaderboard([trained, outside]).run) == ["03_baseline_cnn"]
    rows = {row["key"]: row["answer"] for row in checklist("x", [trained, outside])}
    assert (rows["external"].status, rows["external"].runs) == ("answered", ["08_external_validation"])
    assert "240 images of 120 groups from another source, nothing chosen anew: AUROC" in rows["external"].lines[0]
    assert {r["key"]: r["answer"].status for r in checklist("x", [trained])}["external"] == "not available"
