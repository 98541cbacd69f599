from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaweight.models import WideResNet28x2, WideResNet28x10


@pytest.fixture(scope="module")
def model() -> WideResNet28x2:
    return WideResNet28x2(generator=torch.Generator().manual_seed(0))


def images(batch: int = 2, size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("kind", [WideResNet28x2, WideResNet28x10])
def test_parameters_follow_the_closed_form(kind):
    classes, channels = 7, 1
    wide = {WideResNet28x2: 2, WideResNet28x10: 10}[kind]
    expected = 9 * channels * 16
    for before, width in ((16, 16 * wide), (16 * wide, 32 * wide), (32 * wide, 64 * wide)):
        expected += 9 * width * (before + 7 * width) + before * width
        expected += 2 * (before + 7 * width)
    expected += 64 * wide * (2 + classes) + classes
    with torch.device("meta"):
        assert sum(p.numel() for p in kind(classes, channels).parameters()) == expected
        published = {WideResNet28x2: 1_467_610, WideResNet28x10: 36_479_194}[kind]
        assert sum(p.numel() for p in kind().parameters()) == published


def test_twenty_eight_convolutions_of_which_three_are_shortcuts(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.bias is None for c in convolutions)
    assert len(convolutions) == 28
    assert sum(c.kernel_size == (3, 3) for c in convolutions) == 25
    assert sum(c.kernel_size == (1, 1) for c in convolutions) == 3
    assert len(norms(model)) == 25


@pytest.mark.parametrize(
    ("batch", "size", "channels", "classes"), [(2, 32, 3, 10), (1, 32, 3, 6), (3, 20, 1, 100)]
)
@pytest.mark.parametrize("training", [True, False])
def test_shapes(batch, size, channels, classes, training):
    net = WideResNet28x2(classes, channels, generator=torch.Generator()).train(training)
    with torch.no_grad():
        assert net(images(batch, size, channels)).shape == (batch, classes)


def reference(parameters, x, eps, slope, activated_shortcuts):
    """The network written out, in evaluation mode, from named tensors."""

    def activated(name, x):
        mean, var = parameters[f"{name}.running_mean"], parameters[f"{name}.running_var"]
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        scale = weight / (var + eps).sqrt()
        x = (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
        return torch.where(x < 0, slope * x, x)

    x = F.conv2d(x, parameters["conv.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(4):
            name = f"stage{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            inner = activated(f"{name}.norm1", x)
            if block == 0 and stage <= activated_shortcuts:
                x = inner
            inner = F.conv2d(inner, parameters[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = activated(f"{name}.norm2", inner)
            inner = F.conv2d(inner, parameters[f"{name}.conv2.weight"], padding=1)
            if block == 0:
                x = F.conv2d(x, parameters[f"{name}.shortcut.weight"], stride=stride)
            x = x + inner
    pooled = F.adaptive_avg_pool2d(activated("norm", x), 1).flatten(1)
    return pooled @ parameters["linear.weight"].T + parameters["linear.bias"]


@pytest.mark.parametrize(
    ("kind", "settings", "eps", "slope", "activated_shortcuts"),
    [
        (WideResNet28x2, {}, 1e-5, 0.1, 1),
        (WideResNet28x2, {"eps": 0.3, "slope": 0.25}, 0.3, 0.25, 1),
        pytest.param(WideResNet28x10, {}, 1e-5, 0.0, 3, marks=pytest.mark.slow),
    ],
)
def test_logits_equal_a_second_implementation(kind, settings, eps, slope, activated_shortcuts):
    generator = torch.Generator().manual_seed(2)
    net = kind(**settings, generator=generator).double().eval()
    for module in norms(net):
        nn.init.normal_(module.running_mean, generator=generator)
        nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
        nn.init.uniform_(module.weight, 0.1, 0.5, generator=generator)
        nn.init.normal_(module.bias, generator=generator)
    x = images(size=16).double()
    with torch.no_grad():
        # The same sums in another order: assert_close's relative 1e-7 in double precision.
        expected = reference(net.state_dict(), x, eps, slope, activated_shortcuts)
        torch.testing.assert_close(net(x), expected)


def test_batch_norm_settings_reach_every_layer():
    default = {(m.momentum, m.eps) for m in norms(WideResNet28x2())}
    assert default == {(0.1, 1e-5)}
    of_the_paper = {(m.momentum, m.eps) for m in norms(WideResNet28x2(momentum=0.001, eps=1e-3))}
    assert of_the_paper == {(0.001, 1e-3)}


def test_running_statistics_move_by_the_momentum():
    net = WideResNet28x2(momentum=0.25, generator=torch.Generator().manual_seed(0))
    x = images(4, 8)
    with torch.no_grad():
        first = net.conv(x)
        net(x)
    expected = 0.25 * first.mean(dim=(0, 2, 3))
    torch.testing.assert_close(net.stage1[0].norm1.running_mean, expected)
