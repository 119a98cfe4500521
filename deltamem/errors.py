"""The errors a caller is expected to show to a person.

Every one carries a one-line message that says what was wrong and what to do next. Anything else that is
raised is a defect of this library.
"""

from __future__ import annotations

import reprlib


class DeltaMemError(Exception):
    """Base of all errors with a message meant for a person."""


class ConfigError(DeltaMemError):
    """A configuration value is unknown or out of range."""


class AttachError(DeltaMemError):
    """A model lacks what the memory attaches to."""


class AdapterError(DeltaMemError):
    """An adapter directory is damaged, or does not fit the backbone."""


class StateError(DeltaMemError):
    """A state does not fit the adapter, the batch, or is not finite."""


class ProfileError(DeltaMemError):
    """A profile is missing, damaged, foreign, locked, or has a bad name."""


class BackboneError(DeltaMemError):
    """A backbone cannot be found, fetched, verified or loaded."""


class DataError(DeltaMemError):
    """A data file cannot be used; the message names the file and the line."""


class MissingExtraError(DeltaMemError):
    """A package that only some commands need is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} takes further packages; install them with: pip install 'deltamem[{extra}]'")


def shown(value: object) -> str:
    """A value for an error message: as Python writes it, cut short where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    return short.repr(value)
