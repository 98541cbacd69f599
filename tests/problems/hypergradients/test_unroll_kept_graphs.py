"""Kept graphs, roll-back, and several problems around an unrolled one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems.base import backward
from metaweight.problems.recording.recorded_steps import RecordedUpdate
from metaweight.problems.step import gradient
from support.naive import relative_error
from support.reweighting import Declared, Judge, program
from support.three_levels import chain
from support.unrolled import (
    batches,
    network,
)
from support.unrolled_declared import gradients_of
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from metaweight import (
    Config,
    ConfigurationError,
    Engine,
    EngineConfig,
    IterativeProblem,
    Unroll,
)
from metaweight.averaging import EMA


@pytest.mark.parametrize("memory", ["flat", "full"])
def test_roll_back_takes_the_loop_back_after_it_was_differentiated(memory: str) -> None:
    """The first loop is the same with and without, the second starts where the last step left."""
    config = Config(type=Unroll(memory=memory), unroll_steps=3)
    plain = program(Declared, config=config)
    rolled = Engine(
        [(other := program(Declared, config=config)).judge, other.classifier],
        EngineConfig(strategy="cpu", roll_back=True),
        {"u2l": {other.judge: [other.classifier]}, "l2u": {other.classifier: [other.judge]}},
    )
    first = gradients_of(plain, plain.judge, 3)
    assert relative_error(gradients_of(rolled, rolled.judge, 3), first) < 1e-12
    second = gradients_of(rolled, rolled.judge, 3)
    assert relative_error(second, gradients_of(plain, plain.judge, 3)) > 1e-6


def test_one_sided_differences_start_from_the_loss_alone_where_more_flowed_in() -> None:
    """The recorded gradient of a middle problem holds what came through the one below it."""
    exact = gradients_of(*chain(Unroll()), 2)
    assert float(exact[0].norm()) > 1e-3
    kind = Unroll(product="one_sided", alpha=1e-6)
    assert relative_error(gradients_of(*chain(kind), 2), exact) < 1e-4


def test_kept_graphs_are_refused_where_hypergradients_flow_in() -> None:
    with pytest.raises(ConfigurationError, match=r"'mid' asks for Unroll\(memory='full'\).*'flat'"):
        chain(Unroll(memory="full"))


@pytest.mark.parametrize("coupled", ["sum", "product of the weights", "network in between"])
def test_every_upper_problem_finds_the_graphs_or_others_like_them(coupled: str) -> None:
    """Two upper problems differentiate through one lower one, and the first has moved by then."""

    class First(Judge):
        def training_step(self, batch):
            inputs, labels = batch
            return F.cross_entropy(self.lower(inputs), labels)

    class Both(IterativeProblem):
        def training_step(self, batch):
            inputs, labels = batch
            losses = F.cross_entropy(self.module(inputs), labels, reduction="none").unsqueeze(1)
            if coupled == "network in between":
                return (self.one(self.two(losses)) * losses).mean()
            one, two = self.one(losses.detach()), self.two(losses.detach())
            return ((one + two if coupled == "sum" else one * two) * losses).mean()

    def gradients(memory: str) -> list[torch.Tensor]:
        torch.default_generator.manual_seed(0)
        net = network()
        lower = Both(
            "lower",
            Config(type=Unroll(memory=memory), unroll_steps=2),
            net,
            torch.optim.SGD(net.parameters(), lr=0.1),
            train_data_loader=batches(1, 4),
        )
        uppers = []
        for name in ("one", "two"):
            module = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
            optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
            uppers.append(First(name, None, module, optimizer, train_data_loader=batches(2, 1)))
        engine = Engine(
            [*uppers, lower],
            EngineConfig(strategy="cpu"),
            {"u2l": {u: [lower] for u in uppers}, "l2u": {lower: uppers}},
        )
        seen: list[torch.Tensor] = []
        for upper in uppers:
            upper.grad_callback = lambda u=upper: seen.extend(
                p.grad.clone() for p in u.module.parameters()
            )
        for _ in range(4):
            engine.train_step()
        return seen

    assert relative_error(gradients("full"), gradients("flat")) < 1e-12


def test_kept_graphs_are_built_anew_where_a_validation_moved_what_they_hold() -> None:
    """A teacher takes the student's buffers and comes back inside a loop; autograd cannot know that
    all is as it was."""

    def gradient(memory: str, validate: bool) -> list[torch.Tensor]:
        config = Config(type=Unroll(memory=memory), unroll_steps=4)
        engine = program(Declared, config=config)
        norm = engine.classifier.module[1]
        norm.train = lambda mode=True: norm
        norm.training = False
        ema = EMA(engine.classifier.module, 0.9)
        seen: list[torch.Tensor] = []
        engine.judge.grad_callback = lambda: seen.extend(
            p.grad.clone() for p in engine.judge.module.parameters()
        )
        for _ in range(4):
            engine.train_step()
            if validate and not seen:
                with ema.applied():
                    pass
        return seen

    assert relative_error(gradient("full", True), gradient("flat", False)) < 1e-12


def test_graphs_go_with_what_they_were_kept_for() -> None:
    """Another method, as in a check, keeps none, and does not hold those of before."""
    engine = program(Declared, config=Config(type=Unroll(memory="full"), unroll_steps=2))
    engine.train_step()
    state = engine.classifier.step_state
    assert [step.graph is None for update in state.trajectory.updates for step in update.steps] == [
        False
    ]
    under_way = RecordedUpdate([replace(step) for step in state.trajectory.window])
    state.trajectory.under_way = under_way
    state.record_as(replace(state.trajectory.recording, graphs=False))
    assert all(step.graph is None for update in state.trajectory.updates for step in update.steps)
    assert all(step.graph is None for step in under_way.steps)


def test_a_kept_graph_holds_no_values_of_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be as much memory again as the copies of parameters, and nobody reads them. Only
    batch norm uses some of its own again."""
    seen: list[StorageWeakRef] = []

    def watched(loss: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        found = backward.gradients_with_graph(loss, inputs)
        seen.extend(StorageWeakRef(g.untyped_storage()) for g in found if g is not None)
        return found

    monkeypatch.setattr(gradient, "gradients_with_graph", watched)
    config = Config(type=Unroll(memory="full"), unroll_steps=3)
    engine = program(Declared, config=config, batch_norm=False)
    engine.train_step()
    engine.train_step()
    assert [u.steps[0].graph is None for u in engine.classifier.step_state.trajectory.updates] == [
        False
    ] * 2
    assert seen and all(values.expired() for values in seen)
