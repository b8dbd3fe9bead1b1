"""Sentences for pages, made from results: templates in `template/prose`, a file a topic, a macro a passage.

No number on a page is typed by hand. A template that names a value it was not given is an error.
"""

import functools
import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pneumolib.reporting.results import figure_words, in_words, interval


def say(passage: str, **values: Any) -> Any:
    """A passage as Markdown: `topic.macro` of the templates, with `values` as its arguments."""
    from IPython.display import Markdown  # here: the check of what is due imports this module and shows nothing

    return Markdown(sentence(passage, **values))


def sentence(passage: str, known: dict[str, Any] | None = None, **values: Any) -> str:
    """The same as text. Lines are joined, blank lines part paragraphs, and lines that begin with `- ` are items of a list.

    `known` are names that all passages of the topic may ask for.
    """
    topic, macro = passage.split(".")
    text = getattr(_templates().get_template(f"{topic}.md.j2", globals=known).module, macro)(**values)
    paragraphs = (re.sub(r"\s*\n\s*(?!- )", " ", part) for part in re.split(r"\n\s*\n", str(text).strip()))
    return "\n\n".join(
        re.sub(r"\s*\n\s*- ", "\n- ", re.sub(r"[ \t]+", " ", part)).strip() for part in paragraphs if part
    )


@functools.cache
def _templates() -> Environment:
    folder = Path(__file__).with_name("template") / "prose"
    # Markdown for pages, which is turned into HTML later.
    jinja = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters |= {"f": _formatted, "figure": figure_words, "interval": row_interval, "entry": in_words}
    jinja.tests["missing"] = pd.isna
    return jinja


def _formatted(value: float | None, form: str) -> str:
    return "not computable" if value is None or pd.isna(value) else format(value, form)


def row_interval(row: Any, key: str, signed: bool = False) -> str:
    """Figure `key` of a row (a dict or a Series) with its limits, `<key>_low` and `<key>_high`, for reading."""
    return interval(row.get(key), row.get(f"{key}_low"), row.get(f"{key}_high"), signed=signed)
