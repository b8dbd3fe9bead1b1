"""A run's model card: what the network is, for what, on which images, and how well. Markdown, from `result.json` alone.

The sections of `template/model_card.md.j2` are those of Mitchell et al., "Model Cards for Model Reporting", FAccT 2019.
"""

import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.params import FAMILIES
from pneumolib.provenance import device_words
from pneumolib.reporting import run_words
from pneumolib.reporting.check_tables import flat, number, readable
from pneumolib.reporting.prose import safe
from pneumolib.reporting.results import Result, in_words
from pneumolib.reporting.run_words import NOT, asked

CARD_FILE = "MODEL_CARD.md"
_ROBUSTNESS = ["corruption", "severity", "auroc", "auroc_change", "sensitivity_change", "specificity_change"]


def model_card(result: Result, audit: dict | None = None) -> str:
    """The card of a finished training run; what its result does not hold is `not available`.

    Args:
        result: with metrics of test.
        audit: `checks.audit` of the exploration of the same images, for the limitations; None where there is none.
    """
    image, facts, checks = asked(result, "image") or {}, result.facts, result.checks
    settings = [f"{k}={v!r}" for k, v in image.items() if isinstance(v, bool | int | float | str)]
    explanation = [dict(zip(("check", "value"), pair, strict=True)) for pair in flat(checks.get("explanation") or {})]
    return _template().render(
        r=result,
        w=run_words,
        number=number,
        audit=audit,
        image=image,
        size=image.get("size_px"),
        settings=Markup(", ".join(settings)),
        way=asked(result, "model.preprocess") or FAMILIES.get(asked(result, "model.backbone"), (None,))[0],
        archive=run_words.is_archive(result),
        machine=device_words(result.provenance.device),
        milliseconds=facts.get("milliseconds_per_image"),
        seconds=facts.get("training_seconds"),
        parts=[row | {"split": run_words.PARTS.get(row["split"])} for row in run_words.part_sizes(result)],
        metrics=_metrics(result),
        confusion=checks.get("confusion"),
        spread=_spread(result),
        robustness=_robustness(checks.get("robustness") or []),
        chance=checks.get("permutation"),
        explanation=explanation,
        warned=result.ood.validation_warnings["any"] if result.ood else None,
    )


@functools.cache
def _template() -> Template:
    """Everything that is not ours is escaped by `prose.safe`; a missing name is an error."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("template")),
        undefined=StrictUndefined,
        finalize=lambda value: safe(NOT if value is None else value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["table"] = _table
    return jinja.get_template("model_card.md.j2")


def _table(rows: list[dict] | None, empty: str = f"{NOT.capitalize()}.\n") -> Markup:
    """Rows of a check as a Markdown table."""
    if not rows:
        return Markup(empty)
    columns, cells = readable(rows)
    lines = [map(safe, columns), ["---"] * len(columns), *(map(safe, row) for row in cells)]
    return Markup("".join(f"| {' | '.join(line)} |\n" for line in lines))


def _metrics(result: Result) -> list[dict]:
    """A row a metric, validation beside test."""
    parts = [part for part in ("validation", "test") if part in result.metrics]
    return [
        {"metric": name} | {part: in_words(result.own(key, part)) for part in parts}
        for key, name in METRIC_NAMES.items()
        if any(result.own(key, part) for part in parts)
    ]


def _spread(result: Result) -> dict[str, list[dict]]:
    """A table for each part whose training was repeated from several seeds."""
    return {
        part: [
            {"metric": METRIC_NAMES.get(name, name), "mean": s.mean, "mean_low": s.low, "mean_high": s.high}
            | {"seeds": s.seeds, "sd": s.sd, "lowest": s.lowest, "highest": s.highest}
            for name, s in entries.items()
        ]
        for part, entries in result.spread.items()
    }


def _robustness(rows: list[dict]) -> list[dict]:
    """The columns that are shown; the images as they are have no change to show."""
    keep = [name for column in _ROBUSTNESS for name in (column, f"{column}_low", f"{column}_high")]
    rows = [{key: row[key] for key in keep if key in row} for row in rows]
    return [{k: v for k, v in row.items() if row["corruption"] != "none" or "_change" not in k} for row in rows]
