"""How good is it, and how sure are we? From predictions.csv alone: no TensorFlow, no Keras."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": ["METRICS", "EvaluationError", "compute_metrics", "confusion_counts"],
        "intervals": ["metric_table"],
        "comparison": ["compare_auroc"],
        "thresholds": ["Threshold", "choose_threshold"],
    },
)
