"""How good is it, and how sure are we? From predictions.csv alone: no TensorFlow, no Keras."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": ["METRICS", "classification_report", "compute_metrics", "confusion_counts", "threshold_sweep"],
        "intervals": ["metric_table", "own_metrics", "permutation_check", "precision_table", "unpaired_differences"],
        "calibration": ["calibration_curve", "calibration_table", "freeze", "reliability"],
        "curves": ["better_ranges", "curve_bands", "decision_curve", "predictive_values", "risk_coverage"],
        "compare": [
            "compare_auroc",
            "freeze_seeds",
            "label_review",
            "robustness_table",
            "seed_predictions",
            "seed_tables",
            "stratified_table",
            "subgroup_columns",
            "subgroup_table",
        ],
        "external": [
            "drift_table",
            "errors_by_warning",
            "expected_share",
            "external_calibration_table",
            "external_calibrations",
            "ood_warning_table",
            "recalibrate",
            "recalibrate_sites",
            "threshold_differences",
        ],
    },
)
