"""A run's model card: what the network is, for what, on which images, and how well. Markdown, from `result.json` alone.

The sections of `template/model_card.md.j2` are those of Mitchell et al., "Model Cards for Model Reporting", FAccT 2019.
"""

from typing import Any

from markupsafe import Markup

from pneumolib.params import FAMILIES
from pneumolib.provenance import device_words
from pneumolib.reporting import run_words
from pneumolib.reporting.prose import NOT, cells, safe, templates
from pneumolib.reporting.results import Result
from pneumolib.reporting.run_words import asked

CARD_FILE = "MODEL_CARD.md"


def model_card(result: Result, audit: dict | None = None) -> str:
    """The card of a finished training run; what its result does not hold is `not available`.

    Args:
        result: with metrics of test.
        audit: `checks.audit` of the exploration of the same images, for the limitations; None where there is none.
    """
    image = asked(result, "image") or {}
    settings = [f"{k}={v!r}" for k, v in image.items() if isinstance(v, bool | int | float | str)]
    template = templates("markdown").get_template("model_card.md.j2")
    values = {"r": result, "w": run_words, "table": _table, "audit": audit, "image": image}
    text = template.render(
        **values,
        settings=Markup(", ".join(settings)),
        way=asked(result, "model.preprocess") or FAMILIES.get(asked(result, "model.backbone"), (None,))[0],
        machine=device_words(result.provenance.device),
    )
    return text.rstrip() + "\n"


def _table(name: str, found: Any) -> Markup:
    """A table of `tables.md.j2` in Markdown, without its caption: a card has headings."""
    if not found:
        return Markup(f"{NOT.capitalize()}.\n")
    titles, *rows = ([safe(cell) for cell in line] for line in cells(name, found)[1])
    return Markup("".join(f"| {' | '.join(line)} |\n" for line in (titles, ["---"] * len(titles), *rows)))
