"""What holds of every network of images of three channels."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaweight.models import ConvNet6, PreActResNet18, ResNet18, ResNet32, WideResNet28x2


@pytest.fixture(
    scope="module", params=[ConvNet6, PreActResNet18, ResNet18, ResNet32, WideResNet28x2]
)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def model(kind: Any) -> Any:
    return kind(generator=torch.Generator().manual_seed(0))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_initial_weights_have_the_kaiming_variance(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scaled = module.weight.detach() * (module.weight[0].numel() / 2) ** 0.5
            # Sampling error of a mean and of a standard deviation, five times each.
            assert scaled.mean().abs() < 5 / scaled.numel() ** 0.5
            assert (scaled.std() - 1).abs() < 5 / (2 * scaled.numel()) ** 0.5
    assert not model.linear.bias.any()


def test_the_generator_decides_the_weights(kind: Any, model: Any) -> None:
    same = kind(generator=torch.Generator().manual_seed(0))
    other = kind(generator=torch.Generator().manual_seed(1))
    assert all(map(torch.equal, model.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(next(model.parameters()), next(other.parameters()))
    before = torch.get_rng_state()
    drawn = kind()
    torch.set_rng_state(before)
    assert torch.equal(next(drawn.parameters()), next(kind().parameters()))


def test_a_functional_call_leaves_the_module_alone(kind: Any) -> None:
    net = kind(3, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    scaled = {k: v.detach().clone() for k, v in net.named_parameters()}
    scaled["linear.weight"] *= 2
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    logits = functional_call(net, (scaled, buffers), (images(),))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    torch.testing.assert_close(logits, 2 * net(images()))


def test_pickling_keeps_the_function(model: Any) -> None:
    copy = pickle.loads(pickle.dumps(model)).eval()
    model.eval()
    with torch.no_grad():
        assert torch.equal(copy(images()), model(images()))
