"""The graph a program declares, and every refusal of one that makes no sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from metaweight.engines import Graph
from metaweight.problems import GraphError


@dataclass(frozen=True)
class Node:
    name: str


A, B, C, D = Node("a"), Node("b"), Node("c"), Node("d")


def names(nodes: tuple[Node, ...]) -> str:
    return "".join(node.name for node in nodes)


def paths(graph: Graph[Node], name: str) -> list[str]:
    return [names(path) for path in graph.paths[name]]


def test_two_levels() -> None:
    graph = Graph.build([A, B], {"u2l": {A: [B]}, "l2u": {B: [A]}})
    assert graph.nodes == (A, B)
    assert graph.parents == {"a": (), "b": (A,)}
    assert graph.children == {"a": (B,), "b": ()}
    assert graph.paths == {"a": ((A, B, A),), "b": ()}
    assert graph.leaves == (B,)


def test_paths_run_from_the_upper_problem_down_and_back() -> None:
    graph = Graph.build([A, B, C], {"u2l": {A: [C]}, "l2u": {C: [B], B: [A]}})
    assert paths(graph, "a") == ["abca"]
    assert graph.leaves == (C,)


def test_an_upper_problem_of_two_lower_ones_has_a_path_for_each_way_up() -> None:
    graph = Graph.build(
        [A, B, C],
        {"u2l": {A: [C, B], B: [C]}, "l2u": {C: [B, A], B: [A]}},
    )
    # From c upwards: by b, or directly; then from b.
    assert paths(graph, "a") == ["abca", "aca", "aba"]
    assert paths(graph, "b") == ["bcb"]
    assert paths(graph, "c") == []


def test_a_diamond_has_a_path_over_either_side() -> None:
    graph = Graph.build([A, B, C, D], {"u2l": {A: [D]}, "l2u": {D: [B, C], B: [A], C: [A]}})
    assert paths(graph, "a") == ["abda", "acda"]
    assert graph.children["a"] == (B, C)
    assert graph.parents["d"] == (B, C)


def test_several_leaves_keep_the_order_they_were_given_in() -> None:
    graph = Graph.build([C, A, B], {"u2l": {A: [B, C]}, "l2u": {B: [A], C: [A]}})
    assert graph.leaves == (C, B)
    assert graph.children["a"] == (B, C)


@pytest.mark.parametrize("dependencies", [None, {}, {"u2l": None, "l2u": None}, {"u2l": {}}])
def test_without_dependencies_every_problem_is_a_leaf(dependencies: Any) -> None:
    graph = Graph.build([A, B], dependencies)
    assert graph.leaves == (A, B)
    assert graph.paths == {"a": (), "b": ()}


def test_an_edge_upwards_alone_orders_steps_without_a_hypergradient() -> None:
    graph = Graph.build([A, B], {"l2u": {B: [A]}})
    assert graph.parents["b"] == (A,)
    assert graph.paths["a"] == ()


def test_no_problems_are_refused() -> None:
    with pytest.raises(GraphError, match=r"problems=\[\].*at least one problem"):
        Graph.build([], None)


def test_two_problems_of_one_name_are_refused() -> None:
    with pytest.raises(GraphError, match="Two problems are named 'a'"):
        Graph.build([A, Node("a")], None)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(GraphError, match=r"has the key 'u2i'; its keys are 'u2l'.*and 'l2u'"):
        Graph.build([A, B], {"u2i": {A: [B]}})


@pytest.mark.parametrize(
    ("kind", "edges"),
    [("u2l", {A: [B, C]}), ("l2u", {B: [C]}), ("l2u", {C: [A]}), ("u2l", {C: [A]})],
)
def test_an_edge_to_an_unlisted_problem_is_refused(kind: str, edges: Any) -> None:
    message = (
        rf"dependencies\['{kind}'\] names the problem 'c', which is not in problems=\['a', 'b'"
    )
    with pytest.raises(GraphError, match=message):
        Graph.build([A, B], {kind: edges})


def test_an_edge_to_something_that_is_no_problem_is_refused() -> None:
    with pytest.raises(GraphError, match="has the name 'b'; give the problem itself"):
        Graph.build([A, B], {"l2u": {A: ["b"]}})
    with pytest.raises(GraphError, match="names the problem 3, which is not in problems"):
        Graph.build([A, B], {"l2u": {A: [3]}})


@pytest.mark.parametrize("kind", ["u2l", "l2u"])
def test_an_edge_given_twice_is_refused(kind: str) -> None:
    with pytest.raises(GraphError, match=rf"\['{kind}'\] has the edge from 'a' to 'b' twice"):
        Graph.build([A, B], {kind: {A: [B, B]}})


def test_a_cycle_is_refused_and_shown() -> None:
    with pytest.raises(GraphError, match="has a cycle: 'a' -> 'b' -> 'c' -> 'a'"):
        Graph.build([A, B, C], {"l2u": {A: [B], B: [C], C: [A]}})


def test_a_cycle_away_from_the_first_problem_shows_only_its_own_members() -> None:
    with pytest.raises(GraphError, match="has a cycle: 'b' -> 'c' -> 'b'"):
        Graph.build([A, B, C], {"l2u": {A: [B], B: [C], C: [B]}})


def test_a_problem_above_itself_is_refused() -> None:
    with pytest.raises(GraphError, match="has a cycle: 'a' -> 'a'"):
        Graph.build([A], {"l2u": {A: [A]}})
    with pytest.raises(GraphError, match="'a' enters the loss of 'a'"):
        Graph.build([A], {"u2l": {A: [A]}})


def test_an_edge_down_without_a_way_back_up_is_refused() -> None:
    message = "'a' enters the loss of 'b', but no 'l2u' path leads from 'b' back to 'a'"
    with pytest.raises(GraphError, match=message):
        Graph.build([A, B], {"u2l": {A: [B]}})
    with pytest.raises(GraphError, match=message):
        Graph.build([A, B, C], {"u2l": {A: [B]}, "l2u": {B: [C]}})
