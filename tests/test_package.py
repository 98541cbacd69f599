"""Every public name is documented and annotated."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.each import for_each

import metaweight

PACKAGES = (
    "metaweight",
    "metaweight.engines",
    "metaweight.engines.loggers",
    "metaweight.problems",
    "metaweight.problems.hypergradients",
    "metaweight.weighting",
    "metaweight.averaging",
    "metaweight.ensembles",
    "metaweight.data",
    "metaweight.models",
    "metaweight.noise",
    "metaweight.products",
    "metaweight.integrations",
    # Where the package that each is for is installed.
    *(
        f"metaweight.integrations.{module}"
        for module, package in (
            ("huggingface", "transformers"),
            ("trl", "trl"),
            ("lightning", "lightning"),
        )
        if find_spec(package) is not None
    ),
)


def public() -> dict[str, Any]:
    """Every name in an ``__all__``, by the place it is defined in."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found


PUBLIC = public()


def callables(thing: Any) -> Iterator[tuple[str, Any]]:
    """The function itself, or the public methods a class defines, its constructor included."""
    if inspect.isfunction(thing):
        yield thing.__name__, thing
        return
    for name, member in vars(thing).items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if name == "__init__" and (is_dataclass(thing) or getattr(thing, "_is_protocol", False)):
            continue
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, "__func__", function)
        if inspect.isfunction(function):
            yield name, function


def inherits_documentation(owner: Any, name: str) -> bool:
    return any(
        inspect.getdoc(vars(base)[name]) for base in inspect.getmro(owner)[1:] if name in vars(base)
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_the_listed_names_are_there_sorted_and_listed_once(package: str) -> None:
    module = importlib.import_module(package)
    listed = module.__all__
    assert module.__doc__
    assert len(set(listed)) == len(listed)
    assert all(hasattr(module, name) for name in listed)


@for_each(PUBLIC)
def test_public_names_are_documented(place: str) -> None:
    thing = PUBLIC[place]
    documentation = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert documentation, f"{place} has no docstring"
    # A dataclass without one gets its signature for a docstring.
    assert not documentation.startswith(f"{thing.__name__}("), f"{place} has no docstring"
    if inspect.isclass(thing):
        for name, function in callables(thing):
            if name.startswith("__"):
                continue
            documented = function.__doc__ or inherits_documentation(thing, name)
            assert documented, f"{place}.{name} has no docstring"


@for_each(PUBLIC)
def test_public_names_are_fully_annotated(place: str) -> None:
    for name, function in callables(PUBLIC[place]):
        signature = inspect.signature(function)
        bare = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
        ]
        assert not bare, f"{place}: {name} does not annotate {bare}"
        assert signature.return_annotation is not signature.empty, f"{place}: {name} returns what?"


def test_there_are_public_names_to_look_at() -> None:
    assert len(PUBLIC) > 50


@pytest.mark.parametrize("package", ["metaweight", "metaweight.engines", "metaweight.problems"])
def test_packages_say_that_they_are_typed(package: str) -> None:
    module = importlib.import_module(package)
    assert (Path(str(module.__file__)).parent / "py.typed").exists()


def test_the_version_is_a_version() -> None:
    assert all(part.isdigit() for part in metaweight.__version__.split("."))
