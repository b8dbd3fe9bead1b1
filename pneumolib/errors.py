"""The errors that the library raises on purpose. Their message is written for people; `exit_code` is what a command ends with.

A message says what was wrong, where (file, key, cell), what was received, what is allowed, and what to do.
"""

import errno
import os
import re

# The system's own words for what a disk refuses, and what a person can do.
_REMEDIES = {
    os.strerror(errno.ENOSPC): "make room on that disk or name another place (docs/platforms.md, Disk space), then",
    os.strerror(errno.EDQUOT): "delete files of yours on that disk, or ask for a larger quota, then",
    os.strerror(errno.EFBIG): "raise the limit of the file system or of `ulimit -f`, then",
    os.strerror(errno.EROFS): "copy the project to where it can be written to, or name a folder there, then",
    os.strerror(errno.EACCES): "give yourself the right to it (ls -l shows whose it is), or name another place, then",
    "No usable temporary directory": "make room there, or name another folder by the variable TMPDIR, then",
}


def disk_words(fault: Exception | str) -> str:
    """One sentence where `fault` says that a disk is full, read-only or not permitted: what, where, what to do; else "".

    Known by the system's words, because HDF5 and a notebook's kernel pass them on in errors without a number.
    """
    said = re.sub(r"\[Errno \d+\] ", "", str(fault)).strip()
    for words, remedy in _REMEDIES.items():
        if words in said:
            if place := re.search(r"filename = '([^']*)'", said):  # of HDF5, with numbers and addresses around it
                said = f"{words}: {place[1]!r}"
            return f"{said}; {remedy} run the same command again. What was whole is still there"
    return ""


class PneumolibError(Exception):
    """Something failed on the way: a run, a download, an export. Ends a command with 1."""

    exit_code = 1


class InputError(PneumolibError):
    """What was asked for cannot be done: an argument, an environment variable, a device. Ends a command with 2."""

    exit_code = 2


class ParamsError(InputError):
    """A parameter file or parameters cell that cannot be used."""


class DataError(InputError):
    """A data set, table or archive that cannot be used."""


class ModelError(InputError):
    """A network or weights file that is missing, damaged or not safe to load."""


class ImageFileError(PneumolibError):
    """One file that cannot be read as an image. Other files of a batch go on."""


class ResultError(PneumolibError):
    """A `result.json` that is missing or does not fit its contract."""
