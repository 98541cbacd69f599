from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaweight.models import ResNet18


@pytest.fixture(scope="module")
def model() -> ResNet18:
    return ResNet18(generator=torch.Generator().manual_seed(0))


def images(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_published_number_of_parameters(model):
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def test_eighteen_weighted_layers_and_three_in_shortcuts(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.bias is None for c in convolutions)
    assert sum(c.kernel_size == (3, 3) for c in convolutions) + 1 == 18
    assert sum(c.kernel_size == (1, 1) for c in convolutions) == 3
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())


@pytest.mark.parametrize(("batch", "size", "classes"), [(2, 32, 10), (1, 8, 3), (3, 20, 100)])
def test_shapes(batch, size, classes):
    net = ResNet18(classes).eval()
    with torch.no_grad():
        assert net(images(batch, size)).shape == (batch, classes)


def reference(parameters, x):
    """The network from its table in the paper, in evaluation mode, from named tensors."""

    def norm(name, x):
        mean, var = parameters[f"{name}.running_mean"], parameters[f"{name}.running_var"]
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        scale = weight / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    x = norm("norm", F.conv2d(x, parameters["conv.weight"], padding=1)).clamp(min=0)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"stage{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            inner = F.conv2d(x, parameters[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = norm(f"{name}.norm1", inner).clamp(min=0)
            inner = F.conv2d(inner, parameters[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                x = F.conv2d(x, parameters[f"{name}.shortcut.0.weight"], stride=2)
                x = norm(f"{name}.shortcut.1", x)
            x = (norm(f"{name}.norm2", inner) + x).clamp(min=0)
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return pooled @ parameters["linear.weight"].T + parameters["linear.bias"]


def test_logits_equal_a_second_implementation():
    net = ResNet18(generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.1, 0.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    x = images().double()
    with torch.no_grad():
        # The same sums in another order: assert_close's relative 1e-7 in double precision.
        torch.testing.assert_close(net.eval()(x), reference(net.state_dict(), x))
