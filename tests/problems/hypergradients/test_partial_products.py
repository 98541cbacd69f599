"""Hypergradients through some parameters, against dense answers with the others held fixed.

Exact methods agree to relative 1e-9 in float64, which is rounding; a central difference of length
1e-4 has an error of order 1e-8, a one-sided one of length 1e-6 of order 1e-6.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.recording.trajectory import Trajectory
from support.covering import covering
from support.naive import hessian_matrix, mixed_product, relative_error
from support.programs import Options, metaweight, three_levels, trajectory
from support.reweighting import Declared, Plain, program
from support.unrolled import Setting, engine_gradient, naive_gradient
from torch import nn

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    FiniteDifference,
    Hypergradient,
    LastLayers,
    Neumann,
    Nystrom,
    Reweighting,
    SampledLayers,
    Unroll,
)

LAYERS = {"0": [0, 1], "1": [2, 3], "4": [4, 5]}
"""The layers of ``support.reweighting.network`` and the positions of their parameters."""


def block_case(method: Hypergradient, kind: Any, names: tuple[str, ...], **settings: Any) -> Any:
    """A program after three steps, its block of parameters, a vector for it, and its loss."""
    engine = program(
        kind, config=Config(type=method, hypergradient_parameters=names), dropout=0.3, **settings
    )
    classifier, theta = engine.classifier, list(engine.judge.module.parameters())
    classifier.set_optimizer(torch.optim.Adam(classifier.module.parameters(), lr=0.05))
    classifier.step_state.trajectory = Trajectory(method.recording(lower_view(classifier)))
    for _ in range(3):
        engine.train_step()
    everyone = list(classifier.module.parameters())
    block = [everyone[i] for name in sorted(names) for i in LAYERS[name]]
    vector = [torch.linspace(-1, 2, p.numel(), dtype=p.dtype).reshape(p.shape) for p in block]

    def loss() -> torch.Tensor:
        classifier.step_state.trajectory.window[0].random.restore()
        return classifier.training_step(classifier.step_state.trajectory.window[0].batch)

    return classifier, theta, block, vector, loss


NAMES = [("4",), ("0", "4"), ("1",)]


@pytest.mark.parametrize("names", NAMES, ids="+".join)
@pytest.mark.parametrize(
    ("method", "tolerance"),
    [(Reweighting(derivative="forward_mode"), 1e-9), (Reweighting(alpha=1e-4), 1e-6)],
    ids=["forward mode", "central"],
)
def test_reweighting(method: Hypergradient, tolerance: float, names: tuple[str, ...]) -> None:
    classifier, theta, block, vector, loss = block_case(method, Declared, names)
    expected = mixed_product(loss, block, theta, vector)
    assert (
        relative_error(method.vjp(lower_view(classifier), vector, theta).values, expected)
        < tolerance
    )


@pytest.mark.parametrize("names", NAMES, ids="+".join)
def test_one_sided_reweighting(names: tuple[str, ...]) -> None:
    method = Reweighting(derivative="one_sided", alpha=1e-6)
    classifier, theta, block, vector, loss = block_case(method, Declared, names)
    actual = method.vjp(lower_view(classifier), vector, theta).values
    for parameter, value in classifier.step_state.trajectory.updates[-1].start.items():
        parameter.data.copy_(value)
    assert relative_error(actual, mixed_product(loss, block, theta, vector)) < 1e-4


@pytest.mark.parametrize("names", NAMES, ids="+".join)
def test_darts(names: tuple[str, ...]) -> None:
    method = FiniteDifference(alpha=1e-4)
    classifier, theta, block, vector, loss = block_case(method, Plain, names, extra="attached")
    expected = mixed_product(loss, block, theta, vector)
    assert relative_error(method.vjp(lower_view(classifier), vector, theta).values, expected) < 1e-6


class Penalised(Plain):
    """A penalty whose strengths depend on the upper problem alone, not on the network."""

    def training_step(self, batch: Any) -> torch.Tensor:
        inputs, _ = batch
        strengths = self.judge(torch.linspace(0, 1, 4, dtype=inputs.dtype)).reshape(-1)
        return self.module(inputs).square().mean() + (strengths * self.module[4].bias ** 2).sum()


def test_darts_where_the_upper_problem_enters_apart_from_the_network() -> None:
    method = FiniteDifference(alpha=1e-4)
    classifier, theta, block, vector, loss = block_case(method, Penalised, ("4",))
    expected = mixed_product(loss, block, theta, vector)
    assert relative_error(method.vjp(lower_view(classifier), vector, theta).values, expected) < 1e-6


class Wide(nn.Module):
    """Takes 16-bit numbers for single precision, so that torch does not stumble over them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_activations_of_a_step_in_bf16_do_not_serve_passes_in_fp32() -> None:
    """bf16 below the last layer is off by 4e-3, and by 10 in a difference of length 3e-4."""
    method = Reweighting(derivative="one_sided")
    engine = program(
        config=Config(type=method, precision="bf16", hypergradient_parameters=("4",)),
        dtype=torch.float32,
        net=nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), Wide(), nn.Linear(16, 4)
        ),
    )
    for _ in range(3):
        engine.train_step()
    classifier, theta = engine.classifier, list(engine.judge.module.parameters())
    chosen = list(classifier.meta_trainable_parameters())
    vector = [torch.linspace(-1, 2, p.numel()).reshape(p.shape) for p in chosen]
    actual = method.vjp(lower_view(classifier), vector, theta).values
    for parameter, value in classifier.step_state.trajectory.updates[-1].start.items():
        parameter.data.copy_(value)
    exact = Reweighting(derivative="forward_mode").vjp(lower_view(classifier), vector, theta).values
    assert relative_error(actual, exact) < 0.05


@pytest.mark.parametrize("preconditioner", ["source", "exact"])
@pytest.mark.parametrize("names", NAMES, ids="+".join)
def test_sama(names: tuple[str, ...], preconditioner: str) -> None:
    """The preconditioner is diagonal: the block is what a vector of zeros elsewhere gives."""
    method = SAMA(alpha=1e-3, preconditioner=preconditioner)
    classifier, theta, block, vector, _ = block_case(method, Plain, names)
    actual = method.vjp(lower_view(classifier), vector, theta).values
    known = dict(zip(block, vector, strict=True))
    padded = [known.get(p, torch.zeros_like(p)) for p in classifier.module.parameters()]
    classifier._config = replace(classifier.config, hypergradient_parameters=None)
    expected = method.vjp(lower_view(classifier), padded, theta).values
    assert relative_error(actual, expected) < 1e-9


DAMPING = 2.0
INVERSES = {
    "cg": (
        ConjugateGradient(iterations=400, damping=DAMPING, tolerance=1e-13),
        lambda h, v: torch.linalg.solve(h + DAMPING * torch.eye(len(h)).double(), v),
    ),
    "neumann": (Neumann(iterations=1, alpha=0.05), lambda h, v: 0.05 * (2 * v - 0.05 * h @ v)),
    "nystrom": (
        Nystrom(rank=68, damping=DAMPING),
        lambda h, v: torch.linalg.solve(h + DAMPING * torch.eye(len(h)).double(), v),
    ),
}


@pytest.mark.parametrize("names", [("4",)], ids="+".join)
@pytest.mark.parametrize("name", INVERSES)
def test_implicit_methods_use_the_block_of_the_hessian(name: str, names: tuple[str, ...]) -> None:
    method, invert = INVERSES[name]
    classifier, theta, block, vector, loss = block_case(method, Plain, names)
    flat = invert(hessian_matrix(loss, block), torch.cat([v.reshape(-1) for v in vector]))
    pieces = flat.split([w.numel() for w in block])
    solved = [s.reshape(w.shape) for s, w in zip(pieces, block, strict=True)]
    expected = mixed_product(loss, block, theta, solved)
    assert relative_error(method.vjp(lower_view(classifier), vector, theta).values, expected) < 1e-9


UNROLLED = {
    "momentum, clipping": Setting(settings={"lr": 0.1, "momentum": 0.9}, clipping=0.2),
    "accumulation": Setting(settings={"lr": 0.1, "momentum": 0.9}, accumulation=2),
    "adam": Setting(torch.optim.Adam, {"lr": 0.02}),
    "learned": Setting(settings={"lr": 0.1}, learned=("lr", "weight_decay")),
}
PRODUCTS = {
    "exact": Unroll(),
    "forward over reverse": Unroll(product="forward_over_reverse"),
    "kept graphs": Unroll(memory="full"),
}


@pytest.mark.parametrize(("names", "held"), [(("2",), (0, 1)), (("0",), (2, 3))], ids=["2", "0"])
@pytest.mark.parametrize(
    ("case", "product"), covering({key: list(PRODUCTS) for key in UNROLLED}, whole=["adam"])
)
def test_unroll(case: str, product: str, names: tuple[str, ...], held: tuple[int, ...]) -> None:
    """The naive program detaches gradients and updates of the other layer."""
    expected = naive_gradient(UNROLLED[case], held=held)
    assert relative_error(expected, naive_gradient(UNROLLED[case])) > 1e-3
    actual = engine_gradient(UNROLLED[case], PRODUCTS[product], hypergradient_parameters=names)
    assert relative_error(actual, expected) < 1e-9


@pytest.mark.parametrize("names", NAMES, ids="+".join)
def test_unroll_by_finite_difference(names: tuple[str, ...]) -> None:
    """Against the exact products, on a loss whose weights the difference knows how to hold."""

    def found(method: Hypergradient) -> list[torch.Tensor]:
        config = Config(type=method, hypergradient_parameters=names, unroll_steps=3)
        engine = program(config=config, dropout=0.3)
        seen: list[torch.Tensor] = []
        parameters = list(engine.judge.module.parameters())
        engine.judge.grad_callback = lambda: seen.extend(p.grad.clone() for p in parameters)
        for _ in range(3):
            engine.train_step()
        return seen

    actual = found(Unroll(product="finite_difference", alpha=1e-4))
    assert relative_error(actual, found(Unroll())) < 1e-6


def test_the_engine_takes_the_upper_gradient_of_the_block_alone() -> None:
    """With the vector the upper problem's own loss gives, batch by batch."""
    engine = program(
        config=Config(
            type=Reweighting(derivative="forward_mode"), hypergradient_parameters=("1", "4")
        )
    )
    classifier, judge = engine.classifier, engine.judge
    theta, seen = list(judge.module.parameters()), []
    judge.grad_callback = lambda: seen.append([p.grad.clone() for p in theta])
    for _ in range(3):
        engine.train_step()
        block = [*classifier.module[1].parameters(), *classifier.module[4].parameters()]
        vector = torch.autograd.grad(judge.training_step(judge.cur_batch), block)
        expected = mixed_product(
            lambda: classifier.training_step(classifier.step_state.trajectory.window[0].batch),
            block,
            theta,
            list(vector),
        )
        assert relative_error(seen[-1], expected) < 1e-9


@pytest.mark.parametrize("kind", ["darts", "neumann", "unroll"])
def test_all_modules_by_name_are_all_parameters(kind: str) -> None:
    """Through three levels, bit for bit."""
    steps = 8
    settings = {"type": kind, "unroll_steps": 2, "neumann_alpha": 0.1}
    runs = [
        trajectory(three_levels, metaweight(), Options(inner={**settings, **more}), steps)
        for more in ({}, {"hypergradient_parameters": ("0",)})
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


# What is not computed.


class Watched(torch.autograd.Function):
    """The identity, which counts how often something is differentiated through it."""

    passes = 0

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        Watched.passes += 1
        return gradient.clone()

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> Any:
        return tangent.clone()


class Watch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Watched.apply(x)


METHODS = {
    "darts": (Plain, FiniteDifference()),
    "central": (Declared, Reweighting()),
    "one-sided": (Declared, Reweighting(derivative="one_sided")),
    "forward mode": (Declared, Reweighting(derivative="forward_mode")),
    "sama": (Plain, SAMA(alpha=0.01)),
    "neumann": (Plain, Neumann(iterations=2, alpha=0.1)),
    "cg": (Plain, ConjugateGradient(iterations=2, damping=2.0)),
    "unroll": (Plain, Unroll()),
    "unroll, forward over reverse": (Plain, Unroll(product="forward_over_reverse")),
    "unroll, finite difference": (Declared, Unroll(product="finite_difference")),
    "unroll, kept graphs": (Plain, Unroll(memory="full")),
}


@pytest.mark.parametrize("choice", [LastLayers(1), None], ids=["last", "all"])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_goes_back_through_layers_left_out(name: str, choice: Any) -> None:
    kind, method = METHODS[name]
    engine = program(
        kind, config=Config(type=method, hypergradient_parameters=choice, unroll_steps=2)
    )
    net = engine.classifier.module
    net[2] = nn.Sequential(net[2], Watch())
    passes: list[int] = []
    before = engine.judge.training_step

    def starting(batch: Any) -> Any:
        Watched.passes = 0
        return before(batch)

    engine.judge.training_step = starting
    engine.judge.grad_callback = lambda: passes.append(Watched.passes)
    for _ in range(4):
        engine.train_step()
    assert len(passes) == 2
    assert all(count == 0 for count in passes) if choice else all(count > 0 for count in passes)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_sees_one_choice(name: str) -> None:
    """With another one half way the shapes of vector and parameters would not agree."""
    kind, method = METHODS[name]
    config = Config(type=method, hypergradient_parameters=SampledLayers(1, seed=3), unroll_steps=2)
    engine = program(kind, config=config, dropout=0.3)
    seen: list[Any] = []
    theta = list(engine.judge.module.parameters())
    engine.judge.grad_callback = lambda: seen.append([p.grad.clone() for p in theta])
    for _ in range(8):
        engine.train_step()
    assert len(seen) == 4
    assert all(torch.isfinite(g).all() for gradients in seen for g in gradients)
