from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaweight.models import PreActResNet18


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> PreActResNet18:
    return PreActResNet18(generator=torch.Generator().manual_seed(0))


def test_the_published_number_of_parameters(model: PreActResNet18) -> None:
    assert sum(p.numel() for p in model.parameters()) == 11_172_170


def test_eighteen_weighted_layers_and_three_in_shortcuts(model: PreActResNet18) -> None:
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.bias is None for c in convolutions)
    assert sum(c.kernel_size == (3, 3) for c in convolutions) + 1 == 18
    assert sum(c.kernel_size == (1, 1) for c in convolutions) == 3


@pytest.mark.parametrize(("batch", "size", "classes"), [(2, 32, 10), (1, 8, 3), (3, 20, 100)])
def test_shapes(batch: int, size: int, classes: int) -> None:
    net = PreActResNet18(classes, generator=torch.Generator()).eval()
    with torch.no_grad():
        assert net(images(batch, size)).shape == (batch, classes)


def reference(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network written out, in evaluation mode, from named tensors."""

    def activated(name: str, x: Tensor) -> Tensor:
        mean, var = parameters[f"{name}.running_mean"], parameters[f"{name}.running_var"]
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        scale = weight / (var + 1e-5).sqrt()
        return ((x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]).clamp(min=0)

    x = F.conv2d(x, parameters["conv.weight"], padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"stage{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            active = activated(f"{name}.norm1", x)
            inner = F.conv2d(active, parameters[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = activated(f"{name}.norm2", inner)
            inner = F.conv2d(inner, parameters[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                x = F.conv2d(active, parameters[f"{name}.shortcut.weight"], stride=2)
            x = inner + x
    pooled = F.adaptive_avg_pool2d(activated("norm", x), 1).flatten(1)
    return pooled @ parameters["linear.weight"].T + parameters["linear.bias"]


def test_logits_equal_a_second_implementation() -> None:
    generator = torch.Generator().manual_seed(2)
    net = PreActResNet18(generator=generator).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.1, 0.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    x = images(size=16).double()
    with torch.no_grad():
        # The same sums in another order: assert_close's relative 1e-7 in double precision.
        torch.testing.assert_close(net(x), reference(net.state_dict(), x))
