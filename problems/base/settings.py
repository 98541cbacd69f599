"""Checks of settings: a count, a number in a range, a flag, text, one of several names."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

from .errors import ConfigurationError


class LeftOut(int):
    """A number that is a setting's default, told apart from the same number given by a user."""


class LeftOutFloat(float):
    """As :class:`LeftOut`, for a number that is no integer."""


class LeftOutText(str):
    """As :class:`LeftOut`, for text."""


def is_count(value: object, least: int) -> bool:
    """Return whether ``value`` is an integer of at least ``least``; ``True`` is not one."""
    known = isinstance(value, Integral) and not isinstance(value, bool)
    return known and value >= least  # type: ignore[operator]


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Return whether ``value`` is a finite number in ``[least, most]``; ``True`` is not one."""
    known = isinstance(value, Real) and not isinstance(value, bool)
    return known and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]


def is_positive(value: object) -> bool:
    """Return whether ``value`` is a finite number above 0."""
    return is_number(value) and value > 0  # type: ignore[operator]


def is_between(value: object, low: float, high: float) -> bool:
    """Return whether ``value`` is a number strictly between two others."""
    return is_number(value) and low < value < high  # type: ignore[operator]


def is_part(value: object) -> bool:
    """Return whether ``value`` is a number in [0, 1)."""
    return is_number(value, 0) and value < 1  # type: ignore[operator]


def require_count(owner: str, name: str, value: object, least: int) -> None:
    """Refuse a setting that is not an integer of at least ``least``.

    Raises:
        ConfigurationError: Naming the setting.
    """
    if not is_count(value, least):
        raise ConfigurationError(
            f"{owner}({name}={value!r}) must be an integer of at least {least}."
        )


def require_number(
    owner: str,
    name: str,
    value: object,
    *,
    positive: bool = False,
    below: float = math.inf,
    advice: str,
) -> None:
    """Refuse a setting that is not a number in ``[0, below)``, or ``(0, below)``.

    Raises:
        ConfigurationError: Naming the setting, with the advice.
    """
    if not is_number(value, 0) or not value < below or (positive and not value):  # type: ignore[operator]
        least = "above 0" if positive else "at least 0"
        most = "finite" if below == math.inf else f"below {below:g}"
        raise ConfigurationError(
            f"{owner}({name}={value!r}) must be a number {least} and {most}; {advice}."
        )


def require_flag(owner: str, name: str, value: object) -> None:
    """Refuse a setting that is neither true nor false; 0 and 1 pass, text such as "False" does not.

    Raises:
        ConfigurationError: Naming the setting.
    """
    if isinstance(value, str) or value not in (True, False):
        raise ConfigurationError(f"{owner}({name}={value!r}) must be True or False.")


def require_text(owner: str, name: str, value: object) -> None:
    """Refuse a setting that is not a text, or empty.

    Raises:
        ConfigurationError: Naming the setting.
    """
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{owner}({name}={value!r}) must be a name, such as 'loss'.")


def require_function(owner: str, name: str, value: object) -> None:
    """Refuse a setting that is given and cannot be called.

    Raises:
        ConfigurationError: Naming the setting.
    """
    if value is not None and not callable(value):
        raise ConfigurationError(f"{owner}({name}={shown(value)}) must be a function.")


def require_choice(owner: str, name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a setting that is not one of several names.

    Raises:
        ConfigurationError: Naming the setting and the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigurationError(
            f"{owner}({name}={value!r}) is not one of {', '.join(choices)}; choose one of these."
        )


def shown(value: object) -> str:
    """Return a value as text for a message: a class by its name, and at most 80 characters."""
    text = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
