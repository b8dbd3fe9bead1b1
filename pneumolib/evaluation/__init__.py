"""How good is it, and how sure are we? From predictions.csv alone: no TensorFlow, no Keras."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": ["METRICS", "classification_report", "compute_metrics", "confusion_counts"],
        "intervals": ["metric_table", "own_metrics", "permutation_check"],
        "calibration": ["calibration_table", "choose_threshold", "fit_calibration", "reliability"],
        "curves": ["curve_bands", "decision_curve", "predictive_values", "threshold_sweep"],
        "compare": ["compare_auroc", "robustness_table", "seed_predictions", "seed_tables", "subgroup_table"],
        "external": [
            "drift_table",
            "errors_by_warning",
            "expected_share",
            "external_calibration_table",
            "external_calibrations",
            "external_differences",
            "ood_warning_table",
            "recalibrate",
            "threshold_differences",
        ],
    },
)
