from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaweight.models import ResNet32


@pytest.fixture(scope="module")
def model() -> ResNet32:
    return ResNet32(generator=torch.Generator().manual_seed(0))


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_published_number_of_parameters(model):
    assert sum(p.numel() for p in model.parameters()) == 464_154


def test_parameters_follow_the_closed_form():
    classes = 100
    expected = 3 * 16 * 9 + 2 * 16
    for before, width in ((16, 16), (16, 32), (32, 64)):
        expected += 9 * width * (before + 9 * width) + 10 * 2 * width
    expected += 64 * classes + classes
    assert sum(p.numel() for p in ResNet32(classes).parameters()) == expected


def test_thirty_two_weighted_layers_without_convolution_bias(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(convolutions) + len(linears) == 32
    assert all(c.bias is None and c.kernel_size == (3, 3) for c in convolutions)


def reference(parameters, x):
    """The network from its table in the paper, in evaluation mode, from named tensors."""

    def norm(name, x):
        mean, var = parameters[f"{name}.running_mean"], parameters[f"{name}.running_var"]
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        scale = weight / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    x = norm("norm", F.conv2d(x, parameters["conv.weight"], padding=1)).clamp(min=0)
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(5):
            name = f"stage{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            inner = F.conv2d(x, parameters[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = norm(f"{name}.norm1", inner).clamp(min=0)
            inner = F.conv2d(inner, parameters[f"{name}.conv2.weight"], padding=1)
            shortcut = torch.zeros_like(inner)
            shortcut[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
            assert inner.shape[1] == width
            x = (norm(f"{name}.norm2", inner) + shortcut).clamp(min=0)
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return pooled @ parameters["linear.weight"].T + parameters["linear.bias"]


def test_logits_equal_a_second_implementation():
    model = ResNet32(generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.1, 0.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    model.eval()
    x = images().double()
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(model.state_dict(), x))
