"""Passes for several vectors at once, which lose the graph of a function within."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from support.bilinear_layers import assert_equal, conv, dense
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("small_layers_too")


def normed(layer: Callable[[], Any]) -> Callable[[], Any]:
    """Return a network with batch norm around a layer."""

    def made() -> nn.Module:
        channels = nn.BatchNorm1d(4) if layer is dense else nn.BatchNorm2d(1)
        return nn.Sequential(layer(), channels.double(), nn.Tanh(), layer())

    return made


# torch's own batch norm has no rule for several vectors: a loop, of which it warns.
LOOPS = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@LOOPS
@pytest.mark.parametrize(
    ("layer", "vectorized"),
    [
        *((one, how) for one in (conv, dense) for how in ("is_grads_batched", "jacobian", "vmap")),
        # torch cannot map the pass of its own batch norm.
        *((normed(one), how) for one in (conv, dense) for how in ("is_grads_batched", "jacobian")),
    ],
)
def test_penalties_of_jacobians_keep_their_graph(layer: Callable[[], Any], vectorized: str) -> None:
    """A pass for several vectors at once drops the graph of a function within."""
    torch.default_generator.manual_seed(0)
    net = layer()
    shape = (3, 4) if any(isinstance(m, nn.BatchNorm1d) for m in net.modules()) else (2, 1, 4, 4)
    x = torch.randn(shape, dtype=torch.float64)
    weights = list(net.parameters())

    def penalty() -> Tensor:
        given = x.clone().requires_grad_()
        if vectorized == "jacobian":
            rows = torch.autograd.functional.jacobian(
                lambda t: net(t).flatten()[:3], given, create_graph=True, vectorize=True
            )
            return rows.square().sum()
        out = net(given).flatten()[:3]

        def row(along: Tensor, batched: bool = False) -> Tensor:
            settings = {"create_graph": True, "is_grads_batched": batched}
            return torch.autograd.grad(out, given, along, **settings)[0]

        along = torch.eye(3, dtype=torch.float64)
        if vectorized == "vmap":
            return torch.func.vmap(row)(along).square().sum()
        return row(along, batched=True).square().sum()

    def by_loop() -> Tensor:
        given = x.clone().requires_grad_()
        out = net(given).flatten()[:3]
        rows = [torch.autograd.grad(o, given, create_graph=True)[0] for o in out]
        return torch.stack(rows).square().sum()

    expected = torch.autograd.grad(by_loop(), weights, allow_unused=True)
    with differentiable_twice():
        found = torch.autograd.grad(penalty(), weights, allow_unused=True)
    assert float(expected[0].abs().max()) > 1e-3
    assert_equal(*[[torch.zeros(()) if g is None else g for g in all] for all in (found, expected)])
