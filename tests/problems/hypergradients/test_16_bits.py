"""Passes that compute in 16 bits, against double backward of the same network in float64.

bfloat16 has 8 bits, so a product without differences is good to a few times 2^-8; 0.03 and 0.05
leave room for that, and are a tenth of what differences of losses leave. float16 has 11 bits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems import lower_view
from support.naive import cosine, mixed_product, relative_error
from support.reweighting import Declared, Judge
from support.zoo import over
from torch import Tensor, nn

from metaweight import (
    SAMA,
    Config,
    FiniteDifference,
    Penalty,
    ReweightedProblem,
    Reweighting,
    Unroll,
)
from metaweight.weighting import MetaWeightNet

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CENTRAL = r"'classifier' is a central difference, and its passes compute in bfloat16: .*one digit"


class Adapted(nn.Module):
    """A frozen layer and a low-rank change of it in a type of its own."""

    def __init__(self, width: int, base: torch.dtype, own: torch.dtype) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).to(base).requires_grad_(False)
        self.a = nn.Parameter((torch.randn(4, width) / width**0.5).to(own))
        self.b = nn.Parameter((0.1 * torch.randn(width, 4)).to(own))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x.to(self.a.dtype) @ self.a.T @ self.b.T).to(x.dtype)


class Network(nn.Module):
    def __init__(self, base: torch.dtype, own: torch.dtype, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(6, width).to(base).requires_grad_(False)
        self.layers = nn.ModuleList([Adapted(width, base, own) for _ in range(3)])
        self.last = nn.Linear(width, 4).to(base).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.to(self.first.weight.dtype))
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.last(h).to(torch.promote_types(h.dtype, FP32))


class Headed(nn.Module):
    """A head in single precision on a frozen network of 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8).to(BF16).requires_grad_(False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.to(self.body.weight.dtype))).to(x.dtype))


def stepped(method: Any, network: Any, **config: Any) -> Any:
    """A lower problem after a step, the upper parameters and the gradient of an upper loss."""
    torch.default_generator.manual_seed(0)
    network, rater = network(), MetaWeightNet(8)
    batches = [(torch.randn(24, 6), torch.randint(4, (24,))) for _ in range(3)]
    trained = [p for p in network.parameters() if p.requires_grad]
    lower = Declared(
        "classifier",
        Config(type=method, **config),
        network,
        torch.optim.SGD(trained, lr=1e-3),
        None,
        batches,
    )
    upper = Judge("judge", None, rater, torch.optim.SGD(rater.parameters(), lr=0.0), None, batches)
    over(upper, lower, train_iters=1).train_step()
    inputs, labels = batches[2]
    loss = nn.functional.cross_entropy(network(inputs), labels)
    return lower, list(rater.parameters()), list(torch.autograd.grad(loss, trained))


def compared(method: Any, network: Any, **config: Any) -> tuple[float, float]:
    """The relative error and the cosine of a method's product."""
    lower, theta, vector = stepped(method, network, **config)
    found = method.vjp(lower_view(lower), vector, theta).values
    inputs, labels = lower.step_state.trajectory.window[0].batch
    lower.module.double()
    lower.judge.module.double()

    def loss() -> Tensor:
        return ReweightedProblem.training_step(lower, (inputs.double(), labels))

    weights = list(lower.meta_trainable_parameters())
    expected = mixed_product(loss, weights, theta, [v.double() for v in vector])
    return relative_error(found, expected), cosine(found, expected)


NETWORKS = {
    "bf16 and fp32 adapters": lambda: Network(BF16, FP32),
    "bf16": lambda: Network(BF16, BF16),
    "fp16 and fp32 adapters": lambda: Network(FP16, FP32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_usual_choice(name: str) -> None:
    error, angle = compared(Reweighting(), NETWORKS[name])
    print(f"{name}: relative error {error:.2g}, cosine {angle:.5f}")
    assert error < 0.03
    assert angle > 0.999


def test_the_usual_choice_under_autocast() -> None:
    method = Reweighting(full_precision=False)
    error, _ = compared(method, lambda: Network(FP32, FP32), precision="bf16")
    with pytest.warns(UserWarning, match=CENTRAL):
        difference, _ = compared(
            Reweighting("central_difference", full_precision=False),
            lambda: Network(FP32, FP32),
            precision="bf16",
        )
    print(f"relative error {error:.2g}, of a central difference {difference:.2g}")
    assert error < 0.05
    assert error < 0.3 * difference


def test_a_central_difference_is_as_long_as_the_base_needs() -> None:
    long, usual = (Reweighting("central_difference", alpha) for alpha in (0.01, 0.01 / 40))
    with pytest.warns(UserWarning, match=CENTRAL):
        error, angle = compared(long, NETWORKS["bf16 and fp32 adapters"])
        short, _ = compared(usual, NETWORKS["bf16 and fp32 adapters"])
    print(f"relative error {error:.2g}, cosine {angle:.3f}, with the usual length {short:.2g}")
    assert angle > 0.9
    assert error < 0.2 * short


def test_a_small_vector_does_not_vanish() -> None:
    lower, theta, vector = stepped(Reweighting(), NETWORKS["fp16 and fp32 adapters"])
    view = lower_view(lower)
    expected = Reweighting().vjp(view, vector, theta).values
    small = Reweighting().vjp(view, [v * 2.0**-24 for v in vector], theta).values
    assert relative_error([t * 2.0**24 for t in small], expected) < 1e-3


def test_what_only_feeds_the_passes_does_not_count() -> None:
    """The frozen network computes the same in both passes."""
    lower, _, _ = stepped(Reweighting(), Headed)
    assert lower_view(lower).computes_in() == FP32
    lower, _, _ = stepped(Reweighting(), NETWORKS["bf16 and fp32 adapters"])
    assert lower_view(lower).computes_in() == BF16


@pytest.mark.parametrize(
    "method",
    [
        Reweighting("central_difference"),
        FiniteDifference(),
        SAMA(),
        Unroll(product="finite_difference"),
    ],
    ids=lambda method: type(method).__name__,
)
def test_central_differences_are_warned_of(method: Any) -> None:
    with pytest.warns(UserWarning, match=CENTRAL):
        stepped(method, NETWORKS["bf16"])


@pytest.mark.parametrize(
    "method",
    [Reweighting("one_sided"), Penalty(steps=1), Unroll(product="one_sided")],
    ids=lambda method: type(method).__name__,
)
def test_one_sided_differences_are_warned_of(method: Any) -> None:
    with pytest.warns(UserWarning, match=r"'classifier' is a one-sided difference, and its"):
        stepped(method, NETWORKS["bf16 and fp32 adapters"])


class Doubled(torch.autograd.Function):
    """Has no forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient * 2


class WithoutFormula(Network):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(super().forward(x))


def test_a_difference_where_forward_mode_is_not_to_be_had() -> None:
    with pytest.warns(UserWarning, match=r"takes a central difference through problem 'classifi"):
        lower, theta, vector = stepped(Reweighting(), lambda: WithoutFormula(BF16, FP32))
    with pytest.warns(UserWarning, match="takes a central difference"):
        found = Reweighting().vjp(lower_view(lower), vector, theta).values
    with pytest.warns(UserWarning, match=CENTRAL):
        central = Reweighting("central_difference").vjp(lower_view(lower), vector, theta).values
    assert all(torch.equal(a, b) for a, b in zip(found, central, strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_scripted_network_has_no_forward_derivatives() -> None:
    lower, _, _ = stepped(Reweighting(), lambda: torch.jit.script(nn.Linear(6, 4)))
    assert not lower_view(lower).has_forward_derivatives
