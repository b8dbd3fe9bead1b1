"""Sentences and tables for pages, made from results: templates in `template/prose`, a file a topic, a macro a passage or a table.

No number on a page is typed by hand. A template that names a value it was not given is an error. `safe` makes text
from data harmless for Markdown and HTML.

The second half says what a run found, and what it was made from and how; pages, card and checklist share it. What a result
does not hold is `NOT`, never a guess; results of runs that left a check out are read like any other.
"""

import contextlib
import functools
import re
from collections import defaultdict
from html import unescape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pneumolib.data.facts import CONSTANT, FACTS, KINDS, QUANTILES
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.errors import ResultError
from pneumolib.evaluation.compare import SITE, UNRELATED
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.project import SMOKE, run_folder
from pneumolib.reporting.results import NOT_COMPUTABLE, Result, figure_words, in_words, interval, plain, read_result
from pneumolib.text import markdown_text, visible

PROSE = Path(__file__).with_name("template") / "prose"
# The code that says how values are escaped.
_ESCAPING = Path(__file__).read_text("utf-8") + Path(__file__).parents[1].joinpath("text.py").read_text("utf-8")
NOT = "not available"
PARTS = {"train": "training", "val": "validation", "test": "test"}
FACT_NAMES = {name: FACTS[name].title for name in KINDS}
WAYS = {"none": "as it is", "hist": "HE", "clahe": "CLAHE"}  # of equalisation
CALIBRATION_NAMES = {
    "network": "the network's own", "frozen": "frozen calibration", "prior moved": "frozen, prior moved",
    "refitted": "refitted here",
}  # fmt: skip
FEWEST = 10  # images of either class in a subgroup whose metrics are shown


def safe(value: Any) -> Markup:
    """Any value as text on one line, in Markdown and its tables as in HTML: what reads as markup becomes entities.

    Markup of ours, such as what a macro returns, stays as it is.
    """
    if isinstance(value, Markup):
        return value
    return Markup(markdown_text(value))


def say(passage: str, *given: Any, **values: Any) -> Any:
    """A passage as Markdown: `topic.macro` of the templates, and its arguments, in which nothing is markup.

    Args:
        given, values: a table is handed on as its rows, and what cannot be computed as None.
    """
    from IPython.display import Markdown  # here: the check of what is due imports this module and shows nothing

    return Markdown(_joined(_rendered(passage, "markdown", plain(given), plain(values))))


def sentence(passage: str, *given: Any, **values: Any) -> str:
    """The same as plain text, for places that escape what they are given."""
    return _joined(_rendered(passage, "plain", given, values))


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
    text = str(_rendered(f"tables.{name}", "markdown", _rows(plain(given)), {}))
    caption, *lines = (" ".join(part.split()) for part in re.split(r"\n\s*(?=\| )", text.strip()))
    return unescape(caption), [[unescape(cell).strip() for cell in line[1:-1].split("|")] for line in lines]


def _rows(value: Any) -> Any:
    """Results of the user's own notebooks may lack a column that a table has."""
    if isinstance(value, dict):
        return defaultdict(lambda: None, {k: _rows(v) for k, v in value.items()})
    return [_rows(v) for v in value] if isinstance(value, list) else value


def _rendered(passage: str, kind: str, given: Any, values: dict[str, Any]) -> str:
    topic, macro = passage.split(".")
    return getattr(templates(kind).get_template(f"{topic}.md.j2").module, macro)(*given, **values)


def _joined(text: str) -> str:
    """Lines are joined, blank lines part paragraphs, and lines that begin with `- ` are items of a list."""
    paragraphs = (re.sub(r"\s*\n\s*(?!- )", " ", part) for part in re.split(r"\n\s*\n", str(text).strip()))
    return "\n\n".join(re.sub(r"\s*\n\s*- ", "\n- ", re.sub(r"[ \t]+", " ", part)).strip() for part in paragraphs)


class CompiledTemplates(FileSystemBytecodeCache):
    """Compiled templates, in the system's folder for temporary files: to compile takes longer than all else of a check.

    What Jinja compiles depends on how text is escaped, so a template of another state of that code is compiled anew.
    """

    def get_source_checksum(self, source: str) -> str:
        """Of the template, and of that code."""
        return super().get_source_checksum(source + _ESCAPING)

    def dump_bytecode(self, bucket: Any) -> None:
        """Keep a template, unless nothing can be written."""
        with contextlib.suppress(OSError):
            super().dump_bytecode(bucket)


@functools.cache
def templates(kind: Literal["markdown", "plain", "html"], folder: Path = PROSE.parent) -> Environment:
    """Where the templates of this room and of another `folder` are read; data are escaped in Markdown by `safe`, in HTML by Jinja."""
    jinja = Environment(
        loader=FileSystemLoader([PROSE, folder]),
        undefined=StrictUndefined,
        bytecode_cache=CompiledTemplates(pattern=f"pneumolib-{kind}-%s"),
        autoescape=kind != "plain",  # in Markdown, too, so that what a macro returns is known for markup of ours
        finalize={"markdown": lambda value: safe(NOT if value is None else value), "html": visible}.get(kind),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"f": figure_words, "figure": figure_words, "interval": row_interval, "entry": in_words}
    jinja.filters |= {"judged": judged, "by": lambda rows, key: {row[key]: row for row in rows}}
    jinja.tests |= {"missing": pd.isna, "large_enough": large_enough}
    jinja.globals |= {"METRIC_NAMES": METRIC_NAMES, "LABEL_NAMES": LABEL_NAMES, "FACT_NAMES": FACT_NAMES, "WAYS": WAYS,
                      "CALIBRATION_NAMES": CALIBRATION_NAMES, "QUANTILES": QUANTILES, "CONSTANT": CONSTANT, "FEWEST": FEWEST,
                      "NOT": NOT, "PARTS": PARTS, "between": interval, "SITE": SITE, "UNRELATED": UNRELATED,
                      "ARCHIVE": ARCHIVE, "NO_AUDIT": NO_AUDIT}  # fmt: skip
    told = (asked, change_to_test, fact, gravest, is_archive, is_smoke, number)
    jinja.globals |= {function.__name__: function for function in told}
    return jinja


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


# What is known of the archive behind `kaggle_folder` and `tfrecord`, beside its files.
ARCHIVE = {
    "name": "Kermany, Zhang and Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj, licence CC BY 4.0; described in "
    "Kermany et al., Cell 2018;172:1122-1131, doi:10.1016/j.cell.2018.02.010",
    "patients": "children of one to five years",
    "images": "frontal (antero-posterior) chest radiographs",
    "place": "one hospital in Guangzhou",
    "labels": "Two physicians graded the images, and a third the evaluation set.",
    "groups": "A group stands for a child: series and number of the file name. No table of patients exists to check it by.",
}
NO_AUDIT = "No audit of these images is at hand: shortcuts may be present."


def fact(name: str, result: Result, *more: Any) -> str:
    """One sentence on a run, such as `fact("optimizer", result)`; `NOT` where the result does not hold it.

    `more` are arguments that a sentence takes beside the result.
    """
    return sentence(f"facts.{name}", result, lambda path: asked(result, path), *more)


def headline(result: Result) -> list[str]:
    """What a run found, in paragraphs of plain text, from `template/prose/headline.md.j2`.

    The first is for the index and the terminal too. Empty for a run that judges nothing.
    """
    kinds = [kind for kind in ("equalisation", "external", "audit", "comparison") if kind in result.checks]
    trained = "training" if result.metrics.get("test") else "trained"
    kind = trained if result.metrics else next(iter(kinds), None)
    if kind is None:
        return []
    values = {"r": result, "a": lambda path: asked(result, path), "random": has_random_backbone(result)}
    return sentence(f"headline.{kind}", **values).split("\n\n")


def gravest(result: Result) -> list[dict]:
    """Errors of the audit, then its warnings; what was measured on test only repeats what cross-validation said, and comes last."""
    found = [(f["verdict"], name.endswith("_test"), f) for name, f in result.checks["audit"].items()]
    return [f for verdict, _, f in sorted(found, key=lambda entry: entry[:2]) if verdict in ("error", "warning")]


def has_random_backbone(result: Result) -> bool:
    """Whether the run's backbone, or that of the run it continues, began with random weights: no transfer learning."""
    if before := result.checks.get("continues"):
        with contextlib.suppress(ResultError):  # it may be at work again, or have failed
            return has_random_backbone(read_result(run_folder(result.study, before)))
    return asked(result, "model.backbone") is not None and asked(result, "model.weights") == "none"


def asked(result: Result, path: str) -> Any:
    """A parameter by its full name, such as `image.size_px`; None where the result does not hold it."""
    value: Any = result.parameters
    for part in path.split("."):
        value = (value or {}).get(part)
    return value


def is_archive(result: Result) -> bool:
    """Whether the images are the archive's, so that what is known of it may be said."""
    return not result.synthetic and asked(result, "data.source") in ("kaggle_folder", "tfrecord")


def is_smoke(result: Result) -> bool:
    """Whether the study was run small, so that figures mean nothing."""
    return result.study.endswith(SMOKE)


def change_to_test(result: Result) -> float | None:
    """Test AUROC less that of validation; None where one is missing."""
    before, after = (result.own("auroc", part) for part in ("validation", "test"))
    return after.value - before.value if before and after and None not in (before.value, after.value) else None


def number(value: Any) -> str:
    """A figure of a check for reading."""
    if value is None or value != value:
        return NOT_COMPUTABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
