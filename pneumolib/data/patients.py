"""When are two ids one patient? One function decides, for tables of paths, for splits and for the audit."""

import re
import unicodedata

import pandas as pd

# Ids, as `patient_key` gives them, that name nobody.
NO_PATIENT = {"", "-", "--", "?", "na", "n/a", "n.a.", "<na>", "#n/a", "nan", "nat", "none", "null", "unknown", "unk", "missing",
              "notavailable", "anonymous"}  # fmt: skip
_ZEROS = re.compile(r"(?<![^\W_])(?<!\.)0+(?=\d+(?![^\W_]))")  # before a number that stands alone, as in `a1-01`
_NUMBERED = re.compile(r"([^0-9]*?)0*([0-9]+)(?:\.0+)?")


def without_hidden(text: str) -> str:
    """`text` without characters of no width, such as a byte order mark, and without spaces around it."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc")).strip()


def plain_text(text: str) -> str:
    """What is left of heads and ids when case, spaces, characters of no width and the Unicode form play no part."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", "".join(without_hidden(folded).split()))


def patient_key(written: str) -> str:
    """Equal for ids of one patient: `00000007`, `7` and `7.0`; `P 01` and `p1`; `a1-01` and `A1-1`. Digits before letters are
    kept, as in a hash.
    """
    key = _ZEROS.sub("", plain_text(written))
    numbered = _NUMBERED.fullmatch(key)
    return numbered[1] + numbered[2] if numbered else key


def one_spelling(ids: pd.Series) -> pd.Series:
    """`ids` with one spelling a patient: the shortest, and of equally long ones the first in the alphabet."""
    keys, least = {written: patient_key(written) for written in ids.unique()}, {}
    for written in sorted(keys, key=lambda written: (len(written), written)):
        least.setdefault(keys[written], written)
    return ids.map({written: least[key] for written, key in keys.items()})
