"""A node of a graph of problems: its place, its neighbours, and the others by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from .changes import note_change
from .errors import GraphError
from .overridables import NAMES
from .settings import require_text

if TYPE_CHECKING:
    from ..problem import Problem


PLANNED = frozenset({"module", "optimizer", *NAMES})
"""Attributes that plans of steps depend on, such as methods, which assigning them overrides."""


@dataclass(frozen=True)
class GraphPosition:
    """Where a problem is in its graph.

    Attributes:
        parents: Upper problems that step after it.
        children: Lower problems it waits for.
        paths: Its hypergradient paths: itself, the lower problems from top to bottom, itself.
        peers: All other problems of the engine, by name.
    """

    parents: tuple[Problem, ...] = ()
    children: tuple[Problem, ...] = ()
    paths: tuple[tuple[Problem, ...], ...] = ()
    peers: Mapping[str, Problem] = field(default_factory=dict)

    @cached_property
    def lowers(self) -> list[Problem]:
        """The problems hypergradients go through, each once."""
        return list(dict.fromkeys(lower for path in self.paths for lower in path[1:-1]))


class GraphNode:
    """A named node of a graph; once it has a place, the other nodes are its attributes.

    Args:
        name: How others refer to it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._position = GraphPosition()
        self.noted_parents: list[Problem] = []
        self.references: dict[str, str] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in PLANNED:
            note_change()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            peers = self.__dict__["_position"].peers if "_position" in self.__dict__ else {}
            known = f" Problems it can see: {', '.join(sorted(peers)) or 'none yet'}."
        else:
            known = ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}.{known}")

    def note_references(self, **names: str) -> None:
        """Note names of other problems, by the constructor's argument, for an engine to check.

        Raises:
            ConfigurationError: For what is no name.
        """
        for argument, name in names.items():
            require_text(f"{type(self).__name__} {self._name!r} ", argument, name)
        self.references = {**self.references, **names}

    def add_child(self, lower: Problem) -> None:
        """Say that this problem steps after ``lower``, for engines that are made afterwards.

        The same as ``lower.add_parent(self)``.

        Raises:
            GraphError: As there.
        """
        lower.add_parent(cast("Problem", self))

    def add_parent(self, upper: Problem) -> None:
        """Say that ``upper`` steps after this problem, for engines that are made afterwards.

        It is an edge ``{"l2u": {self: [upper]}}`` of their dependencies, where it may stand as
        well. A hypergradient needs the edge ``{"u2l": {upper: [self]}}`` too, which only
        dependencies give.

        Raises:
            GraphError: When it was said before, or of the problem itself.
        """
        if upper is self or any(upper is known for known in self.noted_parents):
            why = "itself" if upper is self else "the same problem a second time"
            raise GraphError(
                f"{self._name!r} received {why} as a parent; name each upper problem once."
            )
        here = cast("Problem", self)
        self.noted_parents.append(upper)
        self._position = replace(self._position, parents=(*self._position.parents, upper))
        upper.place_in(replace(upper.position, children=(*upper.position.children, here)))

    def place_in(self, position: GraphPosition) -> None:
        """Take a place in a graph; its other problems become attributes by their names."""
        for name in self._position.peers:
            self.__dict__.pop(name, None)
        self.__dict__.update(position.peers)
        self._position = position
        note_change()

    @property
    def name(self) -> str:
        """The problem's name."""
        return self._name

    @property
    def position(self) -> GraphPosition:
        """Where the problem is in its graph."""
        return self._position

    @property
    def parents(self) -> list[Problem]:
        """Upper problems that step after this one."""
        return list(self._position.parents)

    @property
    def children(self) -> list[Problem]:
        """Lower problems this one waits for."""
        return list(self._position.children)

    @property
    def paths(self) -> list[list[Problem]]:
        """Hypergradient paths: this problem, the lower ones from top to bottom, this problem."""
        return [list(path) for path in self._position.paths]

    @property
    def leaf(self) -> bool:
        """Whether no problem is below this one."""
        return not self._position.children
