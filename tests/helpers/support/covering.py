"""Few of all pairs of two settings, such that each of either is among them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import pytest


def covering(options: Mapping[Any, Sequence[Any]], *, whole: Container[Any] = ()) -> list[Any]:
    """Return parameters of a test: pairs of a key and one of its options, all but a few slow.

    Quick are one option of each key, in turn, and all options of the keys in ``whole``.
    """
    pairs = []
    for place, (key, choice) in enumerate(options.items()):
        for number, option in enumerate(choice):
            quick = key in whole or number == place % len(choice)
            pairs.append(pytest.param(key, option, marks=[] if quick else pytest.mark.slow))
    return pairs
