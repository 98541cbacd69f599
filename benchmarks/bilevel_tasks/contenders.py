"""The contenders, by library, each library in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

from .problems import PROBLEMS, Problem
from .traces import Settings, Trace


class Library(NamedTuple):
    """A library.

    Attributes:
        module: The module of its programs, with ``calls`` and ``trace``.
        needs: Packages that it needs.
        install: How they are installed.
        methods: Names of its programs.
        versions: Packages whose version a record has.
    """

    module: str
    needs: Sequence[str]
    install: str
    methods: Sequence[str]
    versions: Sequence[str]


LIBRARIES: Mapping[str, Library] = {
    "metaweight": Library(
        "ours",
        (),
        "",
        (
            "SOBA",
            "SABA",
            "MASOBA",
            "AmIGO",
            "StocBiO",
            "Neumann, warm and fresh",
            "Neumann",
            "ConjugateGradient",
            "Nystrom",
            "Penalty",
            "FiniteDifference",
            "Unroll",
        ),
        (),
    ),
    "JAX": Library(
        "jax_programs",
        ("jax", "jaxopt"),
        "pip install 'metaweight[jax]'",
        ("SOBA", "SABA", "AmIGO", "StocBiO", "jaxopt"),
        ("jax", "jaxlib", "jaxopt"),
    ),
    "BOAT": Library(
        "boat",
        ("boat_torch", "higher"),
        "pip install higher && pip install --no-deps boat-torch, which asks for numpy below 2",
        ("Unroll",),
        ("boat-torch", "higher"),
    ),
}


def missing(library: str) -> str | None:
    """Return a sentence when a library cannot run here; ``None`` when it can."""
    known = LIBRARIES[library]
    absent = [name for name in known.needs if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{library} is left out: {' and '.join(absent)} not installed ({known.install})."


class Worker:
    """A process in which a library's programs run; it starts with the first of them.

    Args:
        library: Name of the library.
    """

    def __init__(self, library: str) -> None:
        self._library = library
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def calls(self, problem: str, method: str) -> float:
        """Return the oracle calls of one step of ``θ``."""
        return self._pool.submit(_calls, self._library, problem, method).result()

    def trace(self, problem: str, method: str, settings: Settings, looks: int, every: int) -> Trace:
        """Return the trace of a run of ``looks`` times ``every`` steps of ``θ``."""
        given = (self._library, problem, method, settings, looks, every)
        return self._pool.submit(_trace, *given).result()


def programs(library: str) -> Any:
    """Return the module of a library's programs."""
    return importlib.import_module(f"bilevel_tasks.{LIBRARIES[library].module}")


@lru_cache
def _problem(name: str) -> Problem:
    return PROBLEMS[name]()


def _calls(library: str, problem: str, method: str) -> float:
    found: float = programs(library).calls(_problem(problem), method)
    return found


def _trace(
    library: str, problem: str, method: str, settings: Settings, looks: int, every: int
) -> Trace:
    found: Trace = programs(library).trace(
        _problem(problem), method, settings, looks * every, every
    )
    return found
