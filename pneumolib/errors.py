"""The errors that the library raises on purpose. Their message is written for people; `exit_code` is what a command ends with.

A message says what was wrong, where (file, key, cell), what was received, what is allowed, and what to do.
"""


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
