"""Edges that problems are told of one by one, before an engine is made."""

from __future__ import annotations

from typing import Any

import pytest
from support.small import Inner, Outer, problem

from metaweight import Engine, EngineConfig, GraphError


def pair() -> tuple[Any, Any]:
    return problem(Outer, "outer", start=(1.0,)), problem(Inner, "inner")


def trained(outer: Any, inner: Any, **dependencies: Any) -> tuple[float, float]:
    Engine([outer, inner], EngineConfig(train_iters=4, strategy="cpu"), dependencies).run()
    return outer.module.w.item(), inner.module.w.item()


def test_a_told_edge_is_seen_at_once_from_both_ends() -> None:
    outer, inner = pair()
    outer.add_child(inner)
    assert outer.children == [inner] and inner.parents == [outer]
    assert inner.leaf and not outer.leaf


def test_a_told_edge_is_an_edge_of_the_dependencies() -> None:
    outer, inner = pair()
    expected = trained(outer, inner, u2l={outer: [inner]}, l2u={inner: [outer]})
    outer, inner = pair()
    inner.add_parent(outer)
    assert trained(outer, inner, u2l={outer: [inner]}) == expected
    assert [p.name for path in outer.paths for p in path] == ["outer", "inner", "outer"]


def test_an_edge_may_be_told_and_be_among_the_dependencies() -> None:
    outer, inner = pair()
    outer.add_child(inner)
    given = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    Engine([outer, inner], EngineConfig(train_iters=1), given)
    assert inner.parents == [outer]
    assert given["l2u"] == {inner: [outer]}


def test_a_told_edge_must_lead_to_a_problem_of_the_engine() -> None:
    outer, inner = pair()
    inner.add_parent(outer)
    with pytest.raises(GraphError, match="names the problem 'outer', which is not in problems"):
        Engine([inner], EngineConfig(train_iters=1))


def test_an_edge_is_told_once_and_not_to_itself() -> None:
    outer, inner = pair()
    inner.add_parent(outer)
    with pytest.raises(GraphError, match="'inner' received the same problem a second time"):
        outer.add_child(inner)
    with pytest.raises(GraphError, match="'inner' received itself as a parent"):
        inner.add_parent(inner)
    assert inner.parents == [outer] and not inner.children
