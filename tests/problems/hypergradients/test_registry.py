"""Algorithms other packages declare are known by their names."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
from metaweight.problems.hypergradients import registry
from support.reweighting import program

from metaweight import Config, ConfigurationError, Hypergradient, Product, Status


class Nothing(Hypergradient):
    """The hypergradient of a lower problem that responds to nothing."""

    def vjp(self, lower, vector, upper_parameters):
        return Product([0.0 * t for t in upper_parameters], Status("Nothing"))


class NoAlgorithm:
    pass


class WithArguments(Nothing):
    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "metaweight.hypergradients"
    points = [
        EntryPoint("nothing", f"{__name__}:Nothing", group),
        EntryPoint("odd", f"{__name__}:NoAlgorithm", group),
        EntryPoint("ranked", f"{__name__}:WithArguments", group),
        EntryPoint("absent", "no_such_package:Method", group),
        EntryPoint("twice", f"{__name__}:Nothing", group),
        EntryPoint("twice", f"{__name__}:WithArguments", group),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


@pytest.mark.usefixtures("declared")
def test_a_declared_name_is_a_type() -> None:
    engine = program(config=Config(type="nothing"))
    engine.train_step()
    assert isinstance(engine.classifier.hypergradient, Nothing)
    assert engine.classifier.hypergradient_status == Status("Nothing")


@pytest.mark.usefixtures("declared")
def test_what_is_no_algorithm_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"type='odd'.*makes NoAlgorithm; the entry point"):
        program(config=Config(type="odd"))


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ranked", r"could not be made \(TypeError: .*rank.*give an object of it"),
        ("absent", r"as 'no_such_package:Method', which could not be made \(ModuleNotFoundError"),
        ("twice", r":Nothing' and as .*:WithArguments' by several packages; give an object"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        program(config=Config(type=name))


@pytest.mark.usefixtures("declared")
def test_an_unknown_name_is_told_the_declared_ones_too() -> None:
    with pytest.raises(ConfigurationError, match=r"'reinforce', 'absent', .*'odd'"):
        Config(type="od")


def test_an_unknown_name_tells_how_to_add_one() -> None:
    with pytest.raises(ConfigurationError, match="entry points of the group"):
        Config(type="nothing")
