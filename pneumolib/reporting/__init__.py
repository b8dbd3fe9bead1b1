"""From results to pages: one parameter file through papermill to HTML, `result.json`, figures, index pages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "results": ["read_results"],
        "comparing": ["compare_runs", "leaderboard", "read_prediction_table"],
    },
)
