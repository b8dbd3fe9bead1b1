"""Answers on evaluation and results; each takes the evidence of a study with a trained run."""

from collections.abc import Callable

from pneumolib.evaluation.compare import SITE, UNRELATED
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting import run_words
from pneumolib.reporting.check_tables import flat, number
from pneumolib.reporting.checklist_evidence import Answer, Evidence
from pneumolib.reporting.results import Result, in_words
from pneumolib.reporting.run_words import NOT, is_archive
from pneumolib.reporting.words import interval

# Metrics that ask for the order of scores or their size, and those of calls at the threshold.
_SCORES = ("auroc", "auprc", "brier", "log_loss")
_CALLS = ("sensitivity", "specificity", "ppv", "npv", "accuracy")


def _metrics(e: Evidence) -> Answer:
    shown = [name for key, name in METRIC_NAMES.items() if any(r.metric(key) for r in e.trained)]
    lines = [f"On validation and test: {', '.join(shown)}. Ranking and calls at one threshold are different questions, and so "
             f"is whether probabilities are right: all three are asked."]  # fmt: skip
    plots = {"calibration": "calibration", "predictive_values": "predictive values at other prevalences",
             "confusion": "the table of calls"}  # fmt: skip
    beside = [words for key, words in plots.items() if any(r.checks.get(key) for r in e.trained)]
    lines += [f"Beside them: {', '.join(beside)}."] if beside else []
    return Answer("answered", lines, e.pages)


def _predicting(e: Evidence) -> Answer:
    lines = ["model.keras is applied to the pixels, every image once; predictions.csv of each run keeps all logits and "
             "probabilities."]  # fmt: skip
    return Answer("answered", lines, e.pages)


def _uncertainty(e: Evidence) -> Answer:
    told = e.each(run_words.interval_method)
    lines = [
        *told.lines,
        "Images of one child resemble each other; counting them singly would make intervals too narrow.",
    ]
    chance = [f"{r.run}: with labels dealt out anew the AUROC is {number(p['mean'])} ({number(p.get('low'))}-"
              f"{number(p.get('high'))}); p = {number(p.get('p'))}." for r in e.trained
              if (p := r.checks.get("permutation")) and p.get("mean") is not None]  # fmt: skip
    lines += ["Runs are compared by paired differences on the same resamples."] if e.comparisons else []
    return Answer(told.status, [*lines, *chance], told.runs + e.comparisons)


def _clusters(e: Evidence) -> Answer:
    told = _parts_of_test(e, lambda part: part.startswith(SITE))
    if told.status != "not available":
        return told
    one = "All images come from one hospital: there are no clusters to compare." if is_archive(e.first) else (
        "The results name no hospitals or other sources to compare."
    )  # fmt: skip
    return Answer("not available", [one])


def _robustness(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        changed = [row for row in r.checks["robustness"] if row.get("auroc_change") is not None]
        if not changed:
            return NOT
        worst = min(changed, key=lambda row: row["auroc_change"])
        kinds = len({row["corruption"] for row in changed})
        return (f"{kinds} kinds of change to the test images; worst: {worst['corruption']}, severity {worst['severity']}, "
                f"AUROC {_signed(worst, 'auroc_change')}")  # fmt: skip

    told, sample = e.checked("robustness", say), _parts_of_test(e, lambda part: part.startswith(UNRELATED))
    lines = [line for answer in (told, sample) if answer.status != "not available" for line in answer.lines]
    if not lines:
        return told
    both = {told.status, sample.status} == {"answered"}
    return Answer("answered" if both else "in part", lines, e.pages)


def _signed(row: dict, key: str) -> str:
    return interval(row[key], row.get(f"{key}_low"), row.get(f"{key}_high"), signed=True)


def _seeds(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        s = r.spread.get("test", {}).get("auroc")
        if s is None or s.mean is None:
            return NOT
        return (f"{s.seeds} seeds: test AUROC {interval(s.mean, s.low, s.high)} on average, SD {number(s.sd)}, from "
                f"{number(s.lowest)} to {number(s.highest)}")  # fmt: skip

    return e.each(say)


def _explanation(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        found = r.checks["explanation"]
        return "; ".join(f"{name} {value}" for name, value in flat(found)) if isinstance(found, dict) else NOT

    told = e.checked("explanation", say)
    if told.status == "not available":
        return told
    return Answer(
        told.status, [*told.lines, "Maps are shown on the run's page; a map is no proof of what decides."], told.runs
    )


def _internal(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        moved = run_words.change_to_test(r)
        return NOT if moved is None else (
            f"validation AUROC {in_words(r.own('auroc', 'validation'))}, test {in_words(r.own('auroc'))}, "
            f"a change of {moved:+.3f}"
        )  # fmt: skip

    return e.each(say)


def _external(e: Evidence) -> Answer:
    if not e.tried_elsewhere:
        return Answer(
            "not available", ["Test is of the same source as training. Nothing was tested on images from elsewhere."]
        )
    lines = []
    for r in e.tried_elsewhere:
        found = r.checks["external"]
        told = [f"{METRIC_NAMES[row['metric']]} {interval(row['external'], row['external_low'], row['external_high'])}, from its own "
                f"test {_signed(row, 'difference')}" for row in found["differences"]]  # fmt: skip
        lines.append(f"{found['run']} on {found['images']} images of {found['groups']} groups from another source, nothing "
                     f"chosen anew: {'; '.join(told)}.")  # fmt: skip
    return Answer("answered", lines, [r.run for r in e.tried_elsewhere])


def _fairness(e: Evidence) -> Answer:
    return Answer("not available", ["Nothing could be done: the results hold no age, sex or origin to judge it by."])


def _numbers(e: Evidence) -> Answer:
    told = e.each(lambda r: run_words.size_of_parts(r) or NOT)
    whole = all(r.checks.get("split") for r in e.trained)
    return Answer(told.status if whole or told.status == "not available" else "in part", told.lines, told.runs)


def _metric_words(names: tuple[str, ...]) -> Callable[[Result], str]:
    def say(r: Result) -> str:
        told = [f"{METRIC_NAMES[name]} {in_words(m)}" for name in names if (m := r.own(name)) is not None]
        return "On test: " + ", ".join(told) if told else NOT

    return say


def _performance(e: Evidence) -> Answer:
    return e.each(_metric_words(_SCORES))


def _accuracy(e: Evidence) -> Answer:
    told = e.each(_metric_words(_CALLS))
    others = [f"{r.run}: at a prevalence of {number(row['prevalence'])}, PPV {interval(row['ppv'], row.get('ppv_low'), row.get('ppv_high'))}, "
              f"NPV {interval(row['npv'], row.get('npv_low'), row.get('npv_high'))}."
              for r in e.trained for row in (r.checks.get("predictive_values") or [])[:1]]  # fmt: skip
    return Answer(told.status, [*told.lines, *others], told.runs)


def _parts_of_test(e: Evidence, wanted: Callable[[str], bool]) -> Answer:
    def say(r: Result) -> str:
        told = [f"{row['part']} ({row['images']} images): AUROC "
                f"{interval(row.get('auroc'), row.get('auroc_low'), row.get('auroc_high'))}"
                for row in r.checks["subgroups"] if wanted(row["part"])]  # fmt: skip
        return "; ".join(told) or NOT

    return e.checked("subgroups", say)


def _subgroups(e: Evidence) -> Answer:
    told = _parts_of_test(e, lambda part: part != "all")
    if told.status == "not available":
        return told
    return Answer("in part", [*told.lines, "Not by age, sex or origin, which are not available."], told.runs)


def _calibration(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        row = next((row for row in r.checks["calibration"] if row.get("chosen")), None)
        if row is None:
            return NOT
        return (f"{row['method']}, on test: slope {interval(row.get('slope'), row.get('slope_low'), row.get('slope_high'))}, "
                f"intercept {_signed(row, 'intercept')}, ECE {number(row.get('ece'))} (floor {number(row.get('ece_floor'))})")  # fmt: skip

    return e.checked("calibration", say)


def _updating(e: Evidence) -> Answer:
    told = e.each(run_words.calibration_words)
    lines = [
        "None: threshold and calibration are frozen on validation before test is read, and nothing moves afterwards."
    ]
    if told.status != "not available":
        lines += ["Calibration before the test:", *told.lines]
    return Answer("answered", lines, e.pages)


def _failures(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        c = r.checks["confusion"]
        return (f"{c['fn']} of {c['tp'] + c['fn']} test images with pneumonia called normal, {c['fp']} of {c['fp'] + c['tn']} "
                f"normal ones called pneumonia; pictures on the run's page")  # fmt: skip

    return e.checked("confusion", say)


RESULTS: dict[str, Callable[[Evidence], Answer]] = {
    "metrics": _metrics, "predicting": _predicting, "uncertainty": _uncertainty, "clusters": _clusters,
    "robustness": _robustness, "seeds": _seeds, "explanation": _explanation, "internal": _internal, "external": _external,
    "fairness": _fairness, "numbers": _numbers, "performance": _performance, "accuracy": _accuracy, "subgroups": _subgroups,
    "calibration": _calibration, "updating": _updating, "failures": _failures,
}  # fmt: skip
