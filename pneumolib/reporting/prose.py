"""Sentences and tables for pages, made from results: templates in `template/prose`, a file a topic, a macro a passage or a table.

No number on a page is typed by hand. A template that names a value it was not given is an error. `safe` is the one place where
text from data is made harmless for Markdown and HTML.
"""

import contextlib
import functools
import re
import zlib
from collections import defaultdict
from html import unescape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pneumolib.data.facts import CONSTANT, FACTS, KINDS, QUANTILES
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.project import in_root
from pneumolib.reporting.results import figure_words, in_words, interval, plain

PROSE = Path(__file__).with_name("template") / "prose"
NOT = "not available"
PARTS = {"train": "training", "val": "validation", "test": "test"}
FACT_NAMES = {name: FACTS[name].title for name in KINDS}
WAYS = {"none": "as it is", "hist": "HE", "clahe": "CLAHE"}  # of equalisation
CALIBRATION_NAMES = {
    "network": "the network's own", "frozen": "frozen calibration", "prior moved": "frozen, prior moved",
    "refitted": "refitted here",
}  # fmt: skip
FEWEST = 10  # images of either class in a subgroup whose metrics are shown
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


def say(passage: str, *given: Any, **values: Any) -> Any:
    """A passage as Markdown: `topic.macro` of the templates, and its arguments, in which nothing is markup.

    Args:
        given, values: a table is handed on as its rows, and what cannot be computed as None.
    """
    from IPython.display import Markdown  # here: the check of what is due imports this module and shows nothing

    return Markdown(_joined(_rendered(passage, "markdown", {}, plain(given), plain(values))))


def sentence(passage: str, known: dict[str, Any] | None = None, *given: Any, **values: Any) -> str:
    """The same as plain text, for places that escape what they are given.

    `known` are names that all passages of the topic may ask for.
    """
    return _joined(_rendered(passage, "plain", known or {}, given, values))


def table(name: str, *given: Any) -> pd.DataFrame:
    """A table for reading: `cells` with its caption in `attrs`, and the name of its file `tables/<name>.csv`."""
    caption, (titles, *rows) = cells(name, *given)
    found = pd.DataFrame(rows, columns=titles)
    found.attrs = {"name": name.replace("_", "-"), "caption": caption}
    return found


def cells(name: str, *given: Any) -> tuple[str, list[list[str]]]:
    """A table by a macro of `tables.md.j2`: its caption, and the cells of each line as plain text, titles first.

    Args:
        name: of the macro.
        given: as for `say`; a value that a row lacks is None.
    """
    text = str(_rendered(f"tables.{name}", "markdown", {}, _rows(plain(given)), {}))
    caption, *lines = (" ".join(part.split()) for part in re.split(r"\n\s*(?=\| )", text.strip()))
    return unescape(caption), [[unescape(cell).strip() for cell in line[1:-1].split("|")] for line in lines]


def _rows(value: Any) -> Any:
    """Results of the user's own notebooks may lack a column that a table has."""
    if isinstance(value, dict):
        return defaultdict(lambda: None, {k: _rows(v) for k, v in value.items()})
    return [_rows(v) for v in value] if isinstance(value, list) else value


def _rendered(passage: str, kind: str, known: dict[str, Any], given: Any, values: dict[str, Any]) -> str:
    topic, macro = passage.split(".")
    return getattr(templates(kind).get_template(f"{topic}.md.j2", globals=known).module, macro)(*given, **values)


def _joined(text: str) -> str:
    """Lines are joined, blank lines part paragraphs, and lines that begin with `- ` are items of a list."""
    paragraphs = (re.sub(r"\s*\n\s*(?!- )", " ", part) for part in re.split(r"\n\s*\n", str(text).strip()))
    return "\n\n".join(
        re.sub(r"\s*\n\s*- ", "\n- ", re.sub(r"[ \t]+", " ", part)).strip() for part in paragraphs if part
    )


@functools.cache
def templates(kind: Literal["markdown", "plain", "html"]) -> Environment:
    """Where all templates of this room are read from; data are escaped in Markdown by `safe`, in HTML by Jinja."""
    jinja = Environment(
        loader=FileSystemLoader([PROSE, PROSE.parent]),
        undefined=StrictUndefined,
        autoescape=kind != "plain",  # in Markdown, too, so that what a macro returns is known for markup of ours
        finalize=(lambda value: safe(NOT if value is None else value)) if kind == "markdown" else None,
        bytecode_cache=CompiledTemplates(kind),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"f": figure_words, "figure": figure_words, "interval": row_interval, "entry": in_words}
    jinja.filters |= {"judged": judged, "by": lambda rows, key: {row[key]: row for row in rows}}
    jinja.tests |= {"missing": pd.isna, "large_enough": large_enough}
    jinja.globals |= {"METRIC_NAMES": METRIC_NAMES, "LABEL_NAMES": LABEL_NAMES, "FACT_NAMES": FACT_NAMES, "WAYS": WAYS,
                      "CALIBRATION_NAMES": CALIBRATION_NAMES, "QUANTILES": QUANTILES, "CONSTANT": CONSTANT, "FEWEST": FEWEST,
                       "NOT": NOT, "PARTS": PARTS, "between": interval}  # fmt: skip
    return jinja


class CompiledTemplates(FileSystemBytecodeCache):
    """Compiled templates, kept in `.cache/jinja` where that can be written: to compile takes longer than all else of a check."""

    def __init__(self, kind: str):
        # What is compiled depends on this module, too: `finalize` is applied to constants.
        super().__init__(str(in_root(".cache/jinja")), f"{kind}-{zlib.crc32(Path(__file__).read_bytes()):08x}-%s")

    def dump_bytecode(self, bucket: Any) -> None:
        """Keep a template, unless the folder cannot be written."""
        with contextlib.suppress(OSError):
            Path(self.directory).mkdir(parents=True, exist_ok=True)
            super().dump_bytecode(bucket)


def row_interval(row: Any, key: str, signed: bool = False, form: str = ".3f") -> str:
    """Figure `key` of a row (a dict or a Series) with its limits, `<key>_low` and `<key>_high`, for reading."""
    return interval(row.get(key), row.get(f"{key}_low"), row.get(f"{key}_high"), signed=signed, form=form)


def judged(row: Any, key: str = "difference") -> str:
    """`higher`, `lower`, `same` (the interval of `key` includes zero) or `unknown`."""
    low, high = (row.get(f"{key}_{end}") for end in ("low", "high"))
    if low is None or pd.isna(low):
        return "unknown"
    return "higher" if low > 0 else "lower" if high < 0 else "same"


def large_enough(row: dict[str, Any]) -> bool:
    """Whether a row of `evaluation.subgroup_table` holds enough images of both classes to show a metric."""
    images, pneumonia = row.get("images"), row.get("pneumonia")
    return None in (images, pneumonia) or min(pneumonia, images - pneumonia) >= FEWEST
