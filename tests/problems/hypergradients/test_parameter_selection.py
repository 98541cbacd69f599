"""Which parameters hypergradients go through, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from metaweight.problems.hypergradients.parameter_selection import NamedModules
from metaweight.problems.partial_hypergradient import others_frozen
from support.reweighting import Declared, program
from torch import nn

from metaweight import (
    Config,
    ConfigurationError,
    Hypergradient,
    LastLayers,
    LowerProblem,
    Product,
    SampledLayers,
    Status,
)

LAYERS = {"0": [0, 1], "1": [2, 3], "4": [4, 5]}
"""The layers of ``support.reweighting.network`` and the positions of their parameters."""


def small() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.ReLU(), nn.Linear(3, 2, bias=False)
    )


def select(selection: Any, net: nn.Module, count: int = 0) -> list[str]:
    """Names of the parameters of ``net`` that are chosen."""
    names = {p: name for name, p in net.named_parameters()}
    trainable = [p for p in net.parameters() if p.requires_grad]
    return [names[p] for p in selection.select(net, trainable, count)]


# What is chosen.


def test_named_modules_and_parameters() -> None:
    assert select(NamedModules(("2",)), small()) == ["2.weight"]
    assert select(NamedModules(("0.0",)), small()) == ["0.0.weight", "0.0.bias"]
    assert len(select(NamedModules(("0",)), small())) == 4
    assert select(NamedModules(("0.1", "2")), small()) == ["0.1.weight", "0.1.bias", "2.weight"]
    assert select(NamedModules(("0.0.bias",)), small()) == ["0.0.bias"]


def test_a_name_is_no_prefix_of_longer_names() -> None:
    net = nn.ModuleDict({"layer": nn.Linear(1, 1), "layer2": nn.Linear(1, 1)})
    assert select(NamedModules(("layer",)), net) == ["layer.weight", "layer.bias"]


def test_last_layers_own_parameters_directly() -> None:
    assert select(LastLayers(1), small()) == ["2.weight"]
    assert select(LastLayers(2), small()) == ["0.1.weight", "0.1.bias", "2.weight"]
    assert len(select(LastLayers(3), small())) == 5


def test_a_shared_parameter_counts_once_with_its_first_owner() -> None:
    """A backward pass to it goes back to there."""
    head = nn.Linear(3, 5)
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), head, head)
    head.weight = net[0].weight
    assert select(LastLayers(1), net) == ["2.bias"]
    assert select(LastLayers(2), net) == ["1.weight", "1.bias", "2.bias"]
    assert select(LastLayers(3), net)[0] == "0.weight"
    drawn = [select(SampledLayers(2), net, count) for count in range(50)]
    assert {len(set(names)) - len(names) for names in drawn} == {0}
    with pytest.raises(ConfigurationError, match="has 3 layers with trainable parameters"):
        select(LastLayers(4), net)


def test_frozen_layers_are_no_layers() -> None:
    net = small()
    net[2].requires_grad_(False)
    assert select(LastLayers(1), net) == ["0.1.weight", "0.1.bias"]
    assert "2.weight" not in {n for c in range(20) for n in select(SampledLayers(1), net, c)}


def test_samples_are_a_function_of_seed_and_count() -> None:
    net = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(6)])
    drawn = [select(SampledLayers(2), net, count) for count in range(50)]
    torch.default_generator.manual_seed(5)
    before = torch.get_rng_state()
    assert drawn == [select(SampledLayers(2), net, count) for count in range(50)]
    assert torch.equal(before, torch.get_rng_state())
    assert drawn != [select(SampledLayers(2, seed=1), net, count) for count in range(50)]
    assert all(len(set(names)) == 2 for names in drawn)


def test_samples_are_uniform() -> None:
    """600 draws of 2 in 6: each layer 200 times, with a standard deviation of 11.5."""
    net = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(6)])
    seen = Counter(name for count in range(600) for name in select(SampledLayers(2), net, count))
    assert len(seen) == 6
    assert all(abs(times - 200) < 5 * 11.5 for times in seen.values())


def test_the_choice_is_in_module_order_and_among_what_is_trained() -> None:
    engine = program(config=Config(hypergradient_parameters=("4", "0")))
    net, classifier = engine.classifier.module, engine.classifier
    expected = [*net[0].parameters(), *net[4].parameters()]
    assert [id(p) for p in classifier.meta_trainable_parameters()] == [id(p) for p in expected]
    classifier.set_optimizer(torch.optim.SGD([net[0].weight, net[1].weight], lr=0.1))
    assert [id(p) for p in classifier.meta_trainable_parameters()] == [id(net[0].weight)]


def test_the_choice_is_stable_while_parameters_are_held() -> None:
    classifier = program(config=Config(hypergradient_parameters=LastLayers(1))).classifier
    before = classifier.step_state.hold(classifier.trainable_parameters())
    expected = list(classifier.meta_trainable_parameters())
    for p in classifier.module.parameters():
        p.requires_grad_(False)
    assert [id(p) for p in classifier.meta_trainable_parameters()] == [id(p) for p in expected]
    classifier.step_state.release(before)


# What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(hypergradient_parameters="fc"), r"='fc' must be a tuple of module names"),
        (lambda: Config(hypergradient_parameters=()), r"=\(\) must be a tuple.*None for all"),
        (lambda: Config(hypergradient_parameters=3), r"=3 must be a tuple of module names"),
        (lambda: Config(hypergradient_parameters=("fc", 3)), r"holds 3; give names of modules"),
        (lambda: Config(hypergradient_parameters=LastLayers), r"the class; .*: LastLayers\(1\)"),
        (lambda: LastLayers(0), r"LastLayers\(number=0\) needs a number of layers of at least 1"),
        (lambda: LastLayers(True), r"needs a number of layers of at least 1"),
        (lambda: SampledLayers(1.5), r"SampledLayers\(number=1.5, seed=0\) needs a number"),
        (lambda: SampledLayers(1, seed=None), r"seed=None\) needs an integer as seed"),
    ],
)
def test_a_wrong_setting_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            ("0", "head"),
            r"'classifier' asks for .*hypergradient_parameters=\('0', 'head'\)\), but its module "
            r"has nothing named 'head'; its module holds 0, 1, 2, 3, 4\.",
        ),
        (("4.fc",), r"nothing named '4.fc'; module '4' holds no further modules\."),
        (LastLayers(4), r"LastLayers\(number=4\)\), but its module has 3 layers with trainable"),
        (SampledLayers(9), r"SampledLayers\(number=9, seed=0\)\), but its module has 3 layers"),
        (("2",), r"=\('2',\)\), but the problem trains none of .*; it trains those of 0, 1, 4\."),
    ],
)
def test_what_the_module_lacks_is_refused_by_the_engine(choice: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        program(config=Config(hypergradient_parameters=choice))


def test_a_choice_and_an_override_are_refused_together() -> None:
    class Own(Declared):
        def meta_trainable_parameters(self) -> Any:
            return list(self.module[-1].parameters())

    engine = program(Own)
    assert len(list(engine.classifier.meta_trainable_parameters())) == 2
    with pytest.raises(
        ConfigurationError, match=r"'classifier' defines meta_trainable_parameters .*both select"
    ):
        program(Own, config=Config(hypergradient_parameters=("4",)))


def test_a_configuration_stays_frozen_and_hashable() -> None:
    config = Config(hypergradient_parameters=["fc", "layer3"])  # type: ignore[arg-type]
    assert config.hypergradient_parameters == ("fc", "layer3")
    assert hash(config) == hash(replace(config))
    assert len({LastLayers(1), LastLayers(1), SampledLayers(1), SampledLayers(1, seed=2)}) == 3


# Layers drawn at random.


@dataclass(frozen=True)
class Noting(Hypergradient):
    """Notes what it is given a vector for."""

    notes: Any

    def vjp(self, lower: LowerProblem, vector: Any, upper_parameters: Any) -> Product:
        chosen = lower.weights
        assert [v.shape for v in vector] == [p.shape for p in chosen]
        everyone = lower.optimizer_step.trained
        self.notes.append([i for i, p in enumerate(everyone) if any(p is c for c in chosen)])
        return Product([torch.zeros_like(t) for t in upper_parameters], Status("Noting"))


def sampled_run(selection: SampledLayers, steps: int = 12) -> list[list[int]]:
    notes: list[list[int]] = []
    engine = program(config=Config(type=Noting(notes), hypergradient_parameters=selection))
    for _ in range(steps):
        engine.train_step()
    return notes


def test_each_hypergradient_draws_its_layers() -> None:
    first = sampled_run(SampledLayers(2))
    assert first == sampled_run(SampledLayers(2))
    assert first != sampled_run(SampledLayers(2, seed=1))
    pairs = [sorted(LAYERS[a] + LAYERS[b]) for a, b in (("0", "1"), ("0", "4"), ("1", "4"))]
    assert {tuple(note) for note in first} == {tuple(pair) for pair in pairs}


def test_what_the_upper_problem_trains_itself_is_not_frozen() -> None:
    """A parameter of the lower network below the chosen layers that the upper problem trains."""
    engine = program(config=Config(hypergradient_parameters=LastLayers(1)))
    net, judge = engine.classifier.module, engine.judge
    judge.module.register_parameter("shared", net[0].bias)
    judge.set_optimizer(torch.optim.SGD(judge.module.parameters(), lr=0.1))
    with others_frozen(judge):
        assert net[0].bias.requires_grad
        assert net[4].weight.requires_grad
        assert not net[0].weight.requires_grad
    assert all(p.requires_grad for p in net.parameters())
