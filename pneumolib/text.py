"""Text from data as each output shows it: file names, kinds, sites, ids, and what a file of another person says.

One function an output. A text that is already safe comes back as it was:

- `printable`: a terminal, a log, a figure. One line, in which every character can be seen.
- `csv_cell`: a cell of a CSV file for people, who open it in a spreadsheet.
- `html_text`: HTML, also between quotation marks.
- `markdown_text`: Markdown and its tables, which become HTML.

Files for programs, such as `predictions.csv` and JSON, hold names as they are.
"""

import html
import re

_BYTES = range(0xDC80, 0xDD00)  # what Python makes of a byte in a file's name that is no UTF-8
_FORMULA = re.compile(r"['\t\r]|\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[-+]?[\d.]+(?:e[-+]?\d+)?", re.IGNORECASE)
# Characters that Markdown or HTML could take for markup; underscores within a word are none, and names are full of them.
_MARKUP = re.compile(
    r"[&<>`*|\[\]\\$~]|:(?=//)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^\s*(?:[-+=#]+(?=\s|$)|\d+(?=[.)](?:\s|$)))"
)


def printable(text: object, keep: str = "") -> str:
    """The text with an escape for each character that cannot be seen or moves others.

    These are newlines, control codes, marks of writing direction, characters without width, and bytes that are no UTF-8.

    Args:
        keep: characters that stay, such as the newlines of a message of several lines.
    """
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if code in _BYTES else character.encode("unicode_escape").decode()


def visible(value: object) -> object:
    """What a template or a table of HTML shows of a value; markup of ours, and what is no text, stay as they are."""
    return value if not isinstance(value, str) or hasattr(value, "__html__") else printable(value, "\n\t")


def inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula: with a `'` before it, where it could be one. A number stays a number.

    Without its first `'`, where it has one, the text is as it was.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def csv_cell(value: object) -> object:
    """A cell for people; what is no text stays as it is."""
    return inert(printable(value)) if isinstance(value, str) else value


def html_text(text: object) -> str:
    """Text for HTML, within an element or an attribute in quotation marks."""
    return html.escape(printable(text, "\n"))


def markdown_text(text: object) -> str:
    """Text on one line for Markdown: what reads as markup, there or in HTML, becomes entities."""
    line = printable(re.sub(r"\s+", " ", str(text)))
    return _MARKUP.sub(lambda found: "".join(f"&#{ord(c)};" for c in found[0]), line)
