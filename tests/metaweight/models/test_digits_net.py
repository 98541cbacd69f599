from __future__ import annotations

import pickle

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaweight.data import load_digits
from metaweight.models import DigitsNet


def test_parameters_follow_the_closed_form():
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 64)
    norms = 2 * (32 + 64 + 64)
    assert convolutions + norms + 64 * 10 + 10 == 56_554
    assert sum(p.numel() for p in DigitsNet().parameters()) == 56_554


def test_logits_equal_the_layers_written_out():
    model = DigitsNet(4, generator=torch.Generator().manual_seed(0)).double()
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    values = list(model.parameters())
    result = x
    for i, stride in enumerate((1, 2, 2)):
        weight, scale, shift = values[3 * i : 3 * i + 3]
        result = F.conv2d(result, weight, stride=stride, padding=1)
        mean = result.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((result - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        result = (result - mean) / (variance + 1e-5).sqrt()
        result = (result * scale[:, None, None] + shift[:, None, None]).clamp(min=0)
    assert result.shape == (6, 64, 2, 2)
    pooled = result.flatten(2).sum(2) / 4
    torch.testing.assert_close(model(x), pooled @ values[-2].T + values[-1])


def test_a_second_derivative_agrees_with_finite_differences():
    model = DigitsNet(3, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, 1, 8, 8, generator=generator).double()
    y = torch.tensor([0, 1, 2, 1, 0])
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    direction = {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in start.items()
    }

    def slope(step: float, create_graph: bool = False):
        distance = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        moved = {k: v + distance * direction[k] for k, v in start.items()}
        loss = F.cross_entropy(functional_call(model, moved, (x,)), y)
        return torch.autograd.grad(loss, distance, create_graph=create_graph)[0], distance

    first, distance = slope(1e-4, create_graph=True)
    (second,) = torch.autograd.grad(first, distance)
    h = 1e-7
    difference = (slope(1e-4 + h)[0] - slope(1e-4 - h)[0]) / (2 * h)
    torch.testing.assert_close(second, difference, rtol=1e-4, atol=1e-5)


def test_a_few_steps_learn_the_digits():
    train, test = load_digits()
    model = DigitsNet(generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(40):
        batch = train.subset(torch.randint(len(train), (128,), generator=order))
        optimiser.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.labels).backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(test.inputs).argmax(1) == test.labels).float().mean()
    assert accuracy > 0.9


def test_pickling_and_initialisation():
    model = DigitsNet(generator=torch.Generator().manual_seed(0)).eval()
    copy = pickle.loads(pickle.dumps(model))
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator())
    assert torch.equal(copy(x), model(x))
    weight = next(m for m in model.modules() if isinstance(m, nn.Linear)).weight.detach()
    assert abs(float(weight.std()) - (2 / 64) ** 0.5) < 5 * (2 / 64) ** 0.5 / (2 * 640) ** 0.5
