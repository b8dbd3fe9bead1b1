"""From results to pages: one parameter file through papermill to HTML, `result.json`, figures, index pages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "audit_words",
        "comparing",
        "data_plots",
        "comparison_plots",
        "equalisation_plots",
        "equalisation_words",
        "evaluation_plots",
        "evaluation_words",
        "external_plots",
        "external_words",
        "gallery",
        "plots",
        "published_words",
        "words",
    ],
    submod_attrs={
        "session": ["Session", "start"],
        "results": ["Result", "read_results"],
        "ranking": ["leaderboard", "read_prediction_table"],
        "comparing": ["compare_runs"],
    },
)
