"""Sentences for pages, made from results: templates in `template/prose`, a file a topic, a macro a passage.

No number on a page is typed by hand. A template that names a value it was not given is an error. `safe` is the one place where
text from data is made harmless for Markdown and HTML.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pneumolib.reporting.results import figure_words, in_words, interval

PROSE = Path(__file__).with_name("template") / "prose"
# Characters that Markdown or HTML could take for markup; underscores within a word are none, and names are full of them.
_MARKUP = re.compile(
    r"[&<>`*|\[\]\\$~]|:(?=//)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^\s*(?:[-+=#]+(?=\s|$)|\d+(?=[.)](?:\s|$)))"
)


def safe(value: Any) -> Markup:
    """Any value as text on one line, in Markdown and its tables as in HTML: what reads as markup becomes entities.

    Markup of ours, such as what a macro returns, stays as it is.
    """
    if isinstance(value, Markup):
        return value
    line = re.sub(r"\s+", " ", str(value))
    return Markup(_MARKUP.sub(lambda found: "".join(f"&#{ord(c)};" for c in found[0]), line))


def say(passage: str, **values: Any) -> Any:
    """A passage as Markdown: `topic.macro` of the templates, with `values` as its arguments, in which nothing is markup."""
    from IPython.display import Markdown  # here: the check of what is due imports this module and shows nothing

    return Markdown(_joined(passage, _templates(safe), {}, values))


def sentence(passage: str, known: dict[str, Any] | None = None, **values: Any) -> str:
    """The same as plain text, for places that escape what they are given.

    `known` are names that all passages of the topic may ask for.
    """
    return _joined(passage, _templates(), known or {}, values)


def _joined(passage: str, templates: Environment, known: dict[str, Any], values: dict[str, Any]) -> str:
    """Lines are joined, blank lines part paragraphs, and lines that begin with `- ` are items of a list."""
    topic, macro = passage.split(".")
    text = getattr(templates.get_template(f"{topic}.md.j2", globals=known).module, macro)(**values)
    paragraphs = (re.sub(r"\s*\n\s*(?!- )", " ", part) for part in re.split(r"\n\s*\n", str(text).strip()))
    return "\n\n".join(
        re.sub(r"\s*\n\s*- ", "\n- ", re.sub(r"[ \t]+", " ", part)).strip() for part in paragraphs if part
    )


@functools.cache
def _templates(escape: Callable[[Any], Markup] | None = None) -> Environment:
    jinja = Environment(
        loader=FileSystemLoader(PROSE),
        undefined=StrictUndefined,
        autoescape=bool(escape),  # so that what a macro returns is known for markup of ours
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"f": _formatted, "figure": figure_words, "interval": row_interval, "entry": in_words}
    jinja.filters |= {"judged": judged, "by": lambda rows, key: {row[key]: row for row in rows}}
    jinja.tests["missing"] = pd.isna
    return jinja


def _formatted(value: float | None, form: str) -> str:
    return "not computable" if value is None or pd.isna(value) else format(value, form)


def row_interval(row: Any, key: str, signed: bool = False) -> str:
    """Figure `key` of a row (a dict or a Series) with its limits, `<key>_low` and `<key>_high`, for reading."""
    return interval(row.get(key), row.get(f"{key}_low"), row.get(f"{key}_high"), signed=signed)


def judged(row: Any, key: str = "difference") -> str:
    """`higher`, `lower`, `same` (the interval of `key` includes zero) or `unknown`."""
    low, high = (row.get(f"{key}_{end}") for end in ("low", "high"))
    if low is None or pd.isna(low):
        return "unknown"
    return "higher" if low > 0 else "lower" if high < 0 else "same"
