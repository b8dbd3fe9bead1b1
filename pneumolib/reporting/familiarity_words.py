"""What the training images are like, in a table and a sentence; see `data.ood`."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.data.facts import FACTS, KINDS
from pneumolib.data.ood import QUANTILES, TrainingReference
from pneumolib.reporting.prose import say

FACT_NAMES = {name: FACTS[name].title for name in KINDS}


def facts_words(familiarity: TrainingReference) -> pd.DataFrame:
    """One row a fact: median and middle 95% of the training images, and the limits of a warning."""
    low, median, high = (QUANTILES.index(q) for q in (0.025, 0.5, 0.975))
    spread = familiarity.quantiles
    return pd.DataFrame({
        "Fact of an image": FACT_NAMES.values(),
        "Training images: median": [f"{spread[fact][median]:.4g}" for fact in FACT_NAMES],
        "Middle 95%": [f"{spread[fact][low]:.4g} to {spread[fact][high]:.4g}" for fact in FACT_NAMES],
        "No warning within": ["{:.4g} to {:.4g}".format(*familiarity.limits[fact]) for fact in FACT_NAMES],
    })  # fmt: skip


def summary(familiarity: TrainingReference) -> Markdown:
    """How often validation images would be warned of."""
    rates = familiarity.validation_warnings
    kinds = [f"{kind} {rate:.1%}" for kind, rate in rates.items() if kind != "any"]
    return say("training.ood", reference=familiarity, warned=rates["any"], kinds=kinds)
