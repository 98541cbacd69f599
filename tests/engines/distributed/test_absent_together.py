"""Upper parameters without a hypergradient are those that no process gives one."""

from __future__ import annotations

from typing import Any

from support.absent_checks import METHODS


def test_what_one_process_uses_is_learned_by_all(together: list[dict[str, Any]]) -> None:
    first, second = (each["absent_in_one"] for each in together)
    assert isinstance(first, dict), first
    for method in METHODS:
        assert first[method] == second[method]
        assert first[method].item() != 0.25


def test_what_none_uses_all_refuse(together: list[dict[str, Any]]) -> None:
    first, second = (each["absent_in_all"] for each in together)
    assert set(first) == set(METHODS)
    assert first == second
    assert all("'somewhere' of problem 'top' have no hypergradient" in t for t in first.values())
