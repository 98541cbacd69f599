"""Hypergradients through networks whose segments are computed again in the backward pass.

The oracle is the same program without checkpointing; its hypergradients are compared with naive
ones elsewhere, those of unrolled steps here too. Tolerance: relative 1e-12, the same operations in
the same order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems.kernels.checkpointing import not_reentrant, uncheckpointed
from metaweight.problems.state.swapped_tensors import swapped
from support.covering import covering
from support.naive import relative_error
from support.reweighting import Declared, Plain, program
from torch import Tensor, nn
from torch.utils import checkpoint

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    Engine,
    FiniteDifference,
    Neumann,
    Nystrom,
    Penalty,
    Reweighting,
    Unroll,
    ZeroOrder,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.script.*")

METHODS: dict[str, tuple[Any, Any]] = {
    "darts": (Plain, FiniteDifference()),
    "reweighting, central": (Declared, Reweighting()),
    "reweighting, one-sided": (Declared, Reweighting(derivative="one_sided")),
    "reweighting, forward": (Declared, Reweighting(derivative="forward_mode")),
    "unroll": (Plain, Unroll()),
    "unroll, declared": (Declared, Unroll()),
    "unroll, kept graphs": (Plain, Unroll(memory="full")),
    "unroll, forward over reverse": (Plain, Unroll(product="forward_over_reverse")),
    "unroll, finite difference": (Plain, Unroll(product="finite_difference")),
    "unroll, one-sided": (Declared, Unroll(product="one_sided")),
    "t1t2": (Plain, Unroll(steps=1)),
    "cg": (Plain, ConjugateGradient(iterations=5, damping=1.0)),
    "neumann": (Plain, Neumann(iterations=3, alpha=0.1)),
    "nystrom": (Plain, Nystrom(damping=1.0)),
    "sama": (Plain, SAMA()),
    "penalty": (Plain, Penalty()),
    "zero_order": (Plain, ZeroOrder()),
}


class Segments(nn.Module):
    """A network with segments, at its start, inside each other, and one after the other."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.middle = nn.Sequential(
            nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 8), nn.ReLU()
        )

    def _segment(self, function: Any, *args: Any) -> Tensor:
        if self.reentrant is None:
            found: Tensor = function(*args)
            return found
        return checkpoint.checkpoint(function, *args, use_reentrant=self.reentrant)

    def _outer(self, z: Tensor) -> Tensor:
        return self._segment(self.middle, z) + z

    def forward(self, x: Tensor) -> Tensor:
        z = self._segment(self.first, x).tanh()
        z = self._segment(self._outer, z)
        if self.reentrant is None:
            z = self.middle(z)
        else:
            z = checkpoint.checkpoint_sequential(self.middle, 2, z, use_reentrant=self.reentrant)
        out: Tensor = self.last(z)
        return out


def engine_of(name: str, reentrant: bool | None, steps: int, **config: Any) -> Engine:
    kind, method = METHODS[name]
    torch.default_generator.manual_seed(0)
    settings = Config(type=method, unroll_steps=steps, **config)
    return program(kind, config=settings, net=Segments(reentrant))


def last_gradient(engine: Engine, steps: int) -> list[Tensor]:
    seen: list[list[Tensor]] = []
    parameters = list(engine.judge.module.parameters())
    engine.judge.grad_callback = lambda: seen.append([p.grad.clone() for p in parameters])
    for _ in range(steps):
        engine.train_step()
    return seen[-1]


@pytest.mark.parametrize(
    ("name", "reentrant"),
    covering(
        {key: [False, True] for key in METHODS}, whole=["darts", "unroll", "unroll, declared"]
    ),
)
def test_hypergradients_are_those_without_checkpointing(name: str, reentrant: bool) -> None:
    plain = engine_of(name, None, 2)
    expected = last_gradient(plain, 2)
    segmented = engine_of(name, reentrant, 2)
    assert relative_error(last_gradient(segmented, 2), expected) < 1e-12
    networks = [engine.classifier.module for engine in (plain, segmented)]
    pairs = zip(*(net.parameters() for net in networks), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["darts", "reweighting, central", "unroll", "cg"])
def test_hypergradients_through_some_parameters_are_those_without(name: str) -> None:
    chosen = {"hypergradient_parameters": ("middle.3", "last")}
    expected = last_gradient(engine_of(name, None, 1, **chosen), 1)
    for reentrant in (False, True):
        found = last_gradient(engine_of(name, reentrant, 1, **chosen), 1)
        assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("name", ["unroll", "unroll, kept graphs", "unroll, declared"])
def test_unrolled_hypergradients_are_those_of_a_naive_program(name: str) -> None:
    engine = engine_of(name, None, 2)
    net, judge = engine.classifier.module.eval(), engine.judge.module
    (batches,), (upper,) = (p.train_data_loader for p in (engine.classifier, engine.judge))
    places = list(net.parameters())
    w = [p.detach().clone().requires_grad_() for p in places]

    def losses(batch: Any) -> Tensor:
        with swapped(net, dict(zip(places, w, strict=True))):
            return F.cross_entropy(net(batch[0]), batch[1], reduction="none")

    for batch in batches[:2]:
        sample = losses(batch)
        loss = (judge(sample.detach()).reshape(-1) * sample).mean()
        gradient = torch.autograd.grad(loss, w, create_graph=True)
        w = [a - 0.1 * g for a, g in zip(w, gradient, strict=True)]
    expected = torch.autograd.grad(losses(upper[0]).mean(), list(judge.parameters()))
    for reentrant in (False, True):
        segmented = engine_of(name, reentrant, 2)
        segmented.classifier.module.eval()
        segmented.classifier.module.middle[2].p = 0.0
        assert relative_error(last_gradient(segmented, 2), expected) < 1e-10


def test_first_order_passes_still_save_memory() -> None:
    """The middle of a network under checkpointing runs again in the backward pass of a step."""
    engine = engine_of("darts", False, 1)
    calls: list[bool] = []
    engine.classifier.module.middle[0].register_forward_hook(lambda *_: calls.append(True))
    batch = engine.classifier.train_data_loader[0][0]
    loss = engine.classifier.evaluate(batch).loss
    before = len(calls)
    loss.backward()
    assert len(calls) > before


def test_torch_s_functions_are_put_back_after_an_error() -> None:
    before = dict(vars(checkpoint))
    for context in (not_reentrant, uncheckpointed):
        with pytest.raises(RuntimeError, match="inside"), context():
            raise RuntimeError("inside")
        assert dict(vars(checkpoint)) == before
