"""What run pages and indexes share: template files, style, script, the banners on top, and how a page is put in place."""

import os
from functools import cache
from pathlib import Path

import jinja2

from pneumolib.data.layout import is_drawn
from pneumolib.params import RunParams
from pneumolib.project import SMOKE, in_root

TEMPLATES = Path(__file__).parent / "template"
# What a page may load: itself. A browser then refuses every address, whatever an output of a notebook asks for.
POLICY = "default-src 'unsafe-inline' data: blob:; base-uri 'none'; form-action 'none'"


def render(template: str, **words: object) -> str:
    """A page from a file in `template/`; a word that the template needs and is not given is an error."""
    return _environment().get_template(template).render(css=style(), script=script(), policy=POLICY, **words)


@cache
def style() -> str:
    """The style sheet of every page."""
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


@cache
def script() -> str:
    """The script of every page; each part of it looks for what it works on."""
    return (TEMPLATES / "page.js").read_text(encoding="utf-8")


def banners(study: str | None, synthetic: bool) -> str:
    """What every page says of itself first; `study` is None for the index of all."""
    smoke = study is not None and study.endswith(SMOKE)
    return _environment().get_template("banners.html.j2").render(smoke=smoke, synthetic=synthetic)


def is_synthetic(params: RunParams) -> bool:
    """Whether the images are drawn: by the parameters, or by the mark that a drawing carries wherever it is copied."""
    return params.data.source == "synthetic" or is_drawn(in_root(params.data.root))


def duration(seconds: float) -> str:
    """`19 s`, `2 min 16 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def write_page(path: Path, text: str) -> None:
    """Write atomically, and only when the text differs."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
