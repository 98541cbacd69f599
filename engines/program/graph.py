"""The dependency graph of a program, validated before anything runs.

Nodes are anything with a ``name``; torch is not needed here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from metaweight.problems.base.errors import GraphError
from metaweight.problems.base.settings import shown


class Named(Hashable, Protocol):
    """A node of the graph."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...


Node = TypeVar("Node", bound=Named)
Edges = Mapping[Node, Sequence[Node]]


@dataclass(frozen=True)
class Graph(Generic[Node]):
    """The order in which problems step, and the paths along which hypergradients flow.

    Attributes:
        nodes: All problems, in the order given.
        parents: For each name, the problems that step after it.
        children: For each name, the problems it waits for.
        paths: For each name, its hypergradient paths ``(θ, w_1, …, w_k, θ)``: the problem, those
            below it from top to bottom, and the problem again.
        leaves: Problems that wait for no other, in the order given.
    """

    nodes: tuple[Node, ...]
    parents: dict[str, tuple[Node, ...]]
    children: dict[str, tuple[Node, ...]]
    paths: dict[str, tuple[tuple[Node, ...], ...]]
    leaves: tuple[Node, ...]

    @classmethod
    def build(
        cls,
        nodes: Sequence[Node],
        dependencies: Mapping[str, Any] | None,
        noted_parents: Edges[Node] | None = None,
    ) -> Graph[Node]:
        """Validate the dependencies and build the graph.

        Args:
            nodes: The problems.
            dependencies: ``{"u2l": {upper: [lower, …]}, "l2u": {lower: [upper, …]}}``: upper
                problems whose parameters enter the loss of lower ones, and lower problems that step
                before upper ones. Either may be left out; without both, every problem is
                independent of the others.
            noted_parents: Further ``l2u`` edges, which dependencies may have as well.

        Raises:
            GraphError: For no problems, two of one name, an unknown key, an edge to a problem that
                is not listed, an edge given twice, a cycle, or a ``u2l`` edge without an ``l2u``
                path back.
        """
        _require_nodes(nodes)
        up, down = _edges(nodes, dependencies or {}, noted_parents or {})
        _require_acyclic(nodes, up)
        parents = {node.name: tuple(up.get(node, ())) for node in nodes}
        children = {
            node.name: tuple(low for low, highs in up.items() if node in highs) for node in nodes
        }
        paths = {
            node.name: tuple(
                path for lower in down.get(node, ()) for path in _paths(lower, node, up)
            )
            for node in nodes
        }
        leaves = tuple(node for node in nodes if not children[node.name])
        return cls(tuple(nodes), parents, children, paths, leaves)


def _require_nodes(nodes: Sequence[Node]) -> None:
    if not nodes:
        raise GraphError("Engine(problems=[]) has no leaf to step; give it at least one problem.")
    names = [node.name for node in nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GraphError(
            f"Two problems are named {twice[0]!r}; problems reach each other by name, so give "
            "each its own."
        )


def _edges(
    nodes: Sequence[Node], dependencies: Mapping[str, Any], noted_parents: Edges[Node]
) -> tuple[dict[Node, list[Node]], dict[Node, list[Node]]]:
    _require_mappings(dependencies)
    unknown = [key for key in dependencies if key not in ("u2l", "l2u")]
    if unknown:
        raise GraphError(
            f"dependencies has the key {unknown[0]!r}; its keys are 'u2l' (upper to lower) and "
            "'l2u' (lower to upper)."
        )
    up = _lists("l2u", dependencies.get("l2u") or {})
    for low, highs in noted_parents.items():
        known = up.get(low, [])
        if highs:
            up[low] = [*known, *(high for high in highs if high not in known)]
    down = _lists("u2l", dependencies.get("u2l") or {})
    for kind, edges in (("l2u", up), ("u2l", down)):
        for start, ends in edges.items():
            for node in (start, *ends):
                if isinstance(node, str):
                    raise GraphError(
                        f"An edge of dependencies[{kind!r}] has the name {node!r}; give the "
                        "problem itself."
                    )
                if not any(node is known for known in nodes):
                    raise GraphError(
                        f"An edge of dependencies[{kind!r}] names the problem "
                        f"{getattr(node, 'name', node)!r}, which is not in problems="
                        f"{[known.name for known in nodes]}; list it there."
                    )
            twice = [end.name for end in ends if ends.count(end) > 1]
            if twice:
                raise GraphError(
                    f"dependencies[{kind!r}] has the edge from {start.name!r} to {twice[0]!r} "
                    "twice; keep one."
                )
    return up, down


def _require_mappings(dependencies: object) -> None:
    given = dependencies.values() if isinstance(dependencies, Mapping) else [dependencies]
    if not all(value is None or isinstance(value, Mapping) for value in given):
        raise GraphError(
            f"dependencies={shown(dependencies)} is not of the form "
            "{'u2l': {upper: [lower]}, 'l2u': {lower: [upper]}}; give two dictionaries of lists."
        )


def _lists(kind: str, edges: Mapping[Any, Any]) -> dict[Any, list[Any]]:
    for start, ends in edges.items():
        if not isinstance(ends, Sequence) or isinstance(ends, str):
            raise GraphError(
                f"dependencies[{kind!r}] has {getattr(ends, 'name', ends)!r} for "
                f"{getattr(start, 'name', start)!r}; give a list of problems, also of a single one."
            )
    return {start: list(ends) for start, ends in edges.items()}


def _require_acyclic(nodes: Sequence[Node], up: Edges[Node]) -> None:
    finished: set[Node] = set()

    def visit(node: Node, trail: tuple[Node, ...]) -> None:
        if node in trail:
            loop = [*trail[trail.index(node) :], node]
            raise GraphError(
                "dependencies['l2u'] has a cycle: "
                + " -> ".join(repr(n.name) for n in loop)
                + "; a lower problem's steps must come before its upper problem's, so remove an "
                "edge."
            )
        if node not in finished:
            for high in up.get(node, ()):
                visit(high, (*trail, node))
            finished.add(node)

    for node in nodes:
        visit(node, ())


def _paths(lower: Node, upper: Node, up: Edges[Node]) -> list[tuple[Node, ...]]:
    found: list[tuple[Node, ...]] = []

    def climb(node: Node, trail: tuple[Node, ...]) -> None:
        if node is upper:
            found.append((*reversed(trail), upper))
            return
        for high in up.get(node, ()):
            climb(high, (*trail, high))

    climb(lower, (lower,))
    if not found or lower is upper:
        raise GraphError(
            f"dependencies['u2l'] says {upper.name!r} enters the loss of {lower.name!r}, but no "
            f"'l2u' path leads from {lower.name!r} back to {upper.name!r}, so no hypergradient "
            f"can reach it; add one, such as 'l2u': {{{lower.name}: [{upper.name}]}}."
        )
    return found
