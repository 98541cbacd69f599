from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metaweight import DataError
from metaweight.models import ConvNet6


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_parameters_follow_the_closed_form() -> None:
    convolutions = 9 * (3 * 32 + 32 * 32 + 32 * 96 + 96 * 96 + 96 * 160 + 160 * 160)
    norms = 2 * 2 * (32 + 96 + 160)
    assert convolutions + norms + 160 * 10 + 10 == 492_074
    assert sum(p.numel() for p in ConvNet6().parameters()) == 492_074


@pytest.mark.parametrize(("batch", "size", "classes"), [(2, 32, 10), (1, 16, 3), (3, 21, 100)])
def test_shapes(batch: int, size: int, classes: int) -> None:
    net = ConvNet6(classes, generator=torch.Generator()).eval()
    with torch.no_grad():
        assert net(images(batch, size)).shape == (batch, classes)


def test_images_that_three_poolings_leave_nothing_of_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 3, 7, 7\); give .* with H and W of at least 8\."):
        ConvNet6()(images(size=7))


def reference(values: list[Tensor], x: Tensor) -> Tensor:
    """The network written out, in training mode, from its parameters in their order."""
    for i in range(6):
        weight, scale, shift = values[3 * i : 3 * i + 3]
        x = F.conv2d(x, weight, padding=1)
        if i % 2 == 0:
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax(dim=(3, 5))
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        x = x * (1 + torch.erf(x / 2**0.5)) / 2
    return x.flatten(2).mean(2) @ values[-2].T + values[-1]


def double() -> ConvNet6:
    generator = torch.Generator().manual_seed(0)
    net = ConvNet6(4, generator=generator).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return net


def test_logits_equal_the_layers_written_out() -> None:
    net, x = double(), images(size=16).double()
    with torch.no_grad():
        # The same sums in another order: assert_close's relative 1e-7 in double precision.
        torch.testing.assert_close(net(x), reference(list(net.parameters()), x))


def test_a_second_derivative_agrees_with_differences() -> None:
    net, x, y = double(), images(size=16).double(), torch.tensor([0, 3])
    start = {k: v.detach() for k, v in net.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    along = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in start.items()}

    def gradient(step: float | Tensor) -> Tensor:
        moved = {k: (v + step * along[k]).requires_grad_() for k, v in start.items()}
        loss = F.cross_entropy(functional_call(net, moved, (x,)), y)
        found = torch.autograd.grad(loss, list(moved.values()), create_graph=True)
        return torch.cat([g.flatten() for g in found])

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    here = gradient(at)
    direction = torch.cat([v.flatten() for v in along.values()])
    (backward,) = torch.autograd.grad(here @ direction, at)
    h = 1e-7
    difference = (gradient(h) - gradient(-h)).detach() @ direction / (2 * h)
    # Rounding of 1e-16 over a step of 1e-7.
    torch.testing.assert_close(backward, difference, rtol=1e-5, atol=1e-5)
