"""How good is it, and how sure are we? From predictions.csv alone: no TensorFlow, no Keras."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": ["METRICS", "EvaluationError", "classification_report", "compute_metrics", "confusion_counts"],
        "intervals": ["metric_table"],
        "thresholds": ["Threshold", "choose_threshold"],
        "calibration": ["Calibration", "calibration_table", "fit_calibration", "reliability"],
        "curves": ["curve_bands", "threshold_sweep"],
        "use": ["decision_curve", "predictive_values"],
        "subgroups": ["subgroup_table"],
        "robustness": ["permutation_check", "robustness_table"],
        "comparison": ["compare_auroc", "paired_differences", "secondary_tests"],
        "external": [
            "external_calibration_table",
            "expected_share",
            "external_calibrations",
            "external_differences",
            "move_prior",
            "part_of",
            "recalibrate",
            "threshold_differences",
        ],
        "drift": ["alarm_table", "drift_table", "errors_among"],
        "seeds": ["seed_predictions", "seed_tables"],
    },
)
