"""What the evaluation of a page costs: `make bench`. The limits: 3 seconds for all statistics at 624 images but robustness, 20 for
the figures.

Images are drawn at the size of the official test set and of a validation set, in groups as large as the archive's.
"""

import sys
import time

import numpy as np
import pandas as pd
from scipy.special import expit

from pneumolib import evaluation
from pneumolib.data.corruptions import SEVERITIES, STRENGTHS
from pneumolib.params import EvaluationParams
from pneumolib.reporting import evaluation_plots

SIZES = {"val": (180, 520), "test": (234, 390)}  # normal, pneumonia
IN_A_GROUP = 1.6


def draw(seed: int) -> pd.DataFrame:
    """Predictions with an AUROC of about 0.97."""
    rng, parts = np.random.default_rng(seed), []
    for split, sizes in SIZES.items():
        for label, n in enumerate(sizes):
            groups = rng.integers(0, round(n / IN_A_GROUP), n)
            logits = rng.normal(4 * label - 2, 1.5, n)
            kinds = rng.choice(["bacteria", "virus"], n) if label else ["normal"] * n
            parts.append(pd.DataFrame({
                "image_id": [f"{split}-{label}-{i}" for i in range(n)], "split": split, "label": label, "kind": kinds,
                "group_id": [f"{split}-{label}-{g}" for g in groups], "logit": logits, "probability": expit(logits),
            }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    """Print the table."""
    predictions, options = draw(1), {"params": EvaluationParams(), "seed": 1}
    test = predictions[predictions.split == "test"]
    found, seconds = {}, {}

    def timed(name, function, *args, **more):
        began = time.perf_counter()
        found[name] = function(*args, **more)
        seconds[name] = time.perf_counter() - began
        return found[name]

    threshold, calibration = timed("calibration and threshold", evaluation.freeze, predictions, options["params"])
    predictions, test = calibration.applied(predictions), calibration.applied(test)
    for part in ("val", "test"):
        timed(f"metrics, {part}", evaluation.metric_table, predictions, part, threshold.value, **options)
    bands = timed("curves", evaluation.curve_bands, predictions, **options)
    calibrations = timed("calibration, test", evaluation.calibration_table, predictions, "test", calibration, **options)
    smooth = timed("smoothed calibration", evaluation.calibration_curve, test, test.probability, **options)
    sizes = {"images": len(test), "pneumonia": test.label.sum(), "normal": (test.label == 0).sum()}
    used = calibrations[calibrations.chosen].iloc[0]
    timed("precision", evaluation.precision_table, found["metrics, test"], used, sizes)
    curve = timed("decision curve", evaluation.decision_curve, predictions, "test", **options)
    referral = timed("abstention", evaluation.risk_coverage, predictions, "test", threshold)
    timed("predictive values", evaluation.predictive_values, predictions, "test", threshold.value, **options)
    timed("parts", evaluation.subgroup_table, predictions, "test", threshold.value, **options)
    timed("permutation", evaluation.permutation_check, predictions, "test", 1)
    sweep = timed("sweep", evaluation.threshold_sweep, predictions, "test")
    bins = timed("reliability", evaluation.reliability, test, test.probability)
    other = predictions.assign(
        probability=expit(predictions.logit + np.random.default_rng(0).normal(0, 1, len(predictions)))
    )
    timed(
        "change from the run before", evaluation.compare_auroc, {"a": predictions, "b": other}, "test", "a", **options
    )
    statistics = dict(seconds)
    of_statistics = sum(seconds.values())
    ways = [test.assign(corruption=name, severity=s) for name in STRENGTHS for s in SEVERITIES]
    corrupted = pd.concat([test.assign(corruption="none", severity=0), *ways])
    robust = timed("robustness, 51 ways", evaluation.robustness_table, corrupted, "test", threshold.value, **options)
    began = time.perf_counter()
    plots = [
        evaluation_plots.curves(bands, found["metrics, val"], found["metrics, test"]),
        evaluation_plots.threshold_sweep(sweep, threshold.value),
        evaluation_plots.score_histograms(predictions, threshold.value),
        evaluation_plots.confusion_matrix(evaluation.confusion_counts(test.label, test.probability, threshold.value)),
        evaluation_plots.reliability({"calibration: platt": bins}, smooth=smooth),
        evaluation_plots.decision_curve(curve, evaluation.better_ranges(curve), "platt"),
        evaluation_plots.risk_coverage(referral),
        evaluation_plots.robustness(robust),
    ]
    for plot in plots:
        plot._repr_mimebundle_()
    figures = time.perf_counter() - began
    print(
        "\n## Statistics of a page at 624 test and 700 validation images, 2,000 resamples\n\n| step | seconds |\n|---|---|"
    )
    for name, value in statistics.items():
        print(f"| {name} | {value:.2f} |")
    print(
        f"| **all statistics of one run** | {of_statistics:.2f} |\n| robustness, 51 ways | {seconds['robustness, 51 ways']:.2f} |"
    )
    print(f"| **{len(plots)} figures** | {figures:.2f} |")
    if of_statistics > 3 or figures > 20:
        sys.exit("above the limits of 3 and 20 seconds; measure again alone on the machine")


if __name__ == "__main__":
    main()
