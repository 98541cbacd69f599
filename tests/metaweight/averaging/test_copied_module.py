"""Teachers of models whose layers keep results, compute their weights, or are scripted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from metaweight import ConfigurationError
from metaweight.averaging import EMA


class Keeping(nn.Linear):
    """Keeps the output of its latest pass, and those before in a list."""

    def forward(self, x: Tensor) -> Tensor:
        self.latest = super().forward(x)
        self.all = [self.latest, {"again": self.latest}]
        return self.latest


def _old(norm: Callable[..., Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(nn.Linear(3, 3))  # type: ignore[no-any-return]


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(3, 3))  # type: ignore[no-any-return]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: _old(torch.nn.utils.weight_norm),
    "spectral_norm": lambda: _old(torch.nn.utils.spectral_norm),
    "parametrized weight_norm": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "parametrized spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "keeping": lambda: Keeping(3, 3),
    "script": _scripted,
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_teacher_computes_with_the_averaged_parameters(layer: str, mode: bool) -> None:
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(LAYERS[layer](), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = EMA(model, 0.5)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in range(4):
        optimizer.zero_grad()
        (model(x) ** 2).sum().backward()
        optimizer.step()
        ema.update()
        for name, p in model.named_parameters():
            expected[name] = 0.5 * expected[name] + 0.5 * p.detach()
        if step == 1:
            with torch.inference_mode(mode):
                teacher = ema.teacher()
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not own & {t.data_ptr() for t in (*teacher.parameters(), *teacher.buffers())}
    for name, p in teacher.named_parameters():
        # Rounding of a sum of two products.
        torch.testing.assert_close(p, expected[name], rtol=1e-14, atol=1e-15)
    # The same numbers as the model itself gives with these parameters.
    found = teacher.eval()(x)
    with ema.applied() as applied:
        torch.testing.assert_close(found, applied.eval()(x), rtol=0, atol=0)


def test_a_model_that_is_scripted_as_a_whole() -> None:
    model = _scripted()
    ema = EMA(model, 0.5)
    teacher = ema.teacher()
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(2.0)
    ema.update()
    torch.testing.assert_close(teacher.weight, start + 1.0)
    assert not teacher.weight.requires_grad


class Refusing(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle '_thread.lock' object")


def test_a_layer_that_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), Refusing(1, 1)))
    ema = EMA(model)
    with pytest.raises(
        ConfigurationError,
        match=r"its layer '1\.1', of type Refusing, cannot be copied \(TypeError: cannot pickle "
        r".*Give it a __deepcopy__, or use .* 'with ema\.applied\(\):'",
    ):
        ema.teacher()


class Growing(nn.Module):
    """Its buffer grows with the longest input so far."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.inner.register_buffer("table", torch.zeros(2))

    def forward(self, length: int) -> Tensor:
        if len(self.inner.table) < length:
            self.inner.table = torch.zeros(length)
        return self.inner.weight * self.inner.table[:length]


@pytest.mark.parametrize("buffers", ["copy", "ema", "own", "none"])
def test_a_buffer_that_grows_is_named(buffers: Any) -> None:
    model = Growing()
    ema = EMA(model, buffers=buffers)
    ema.teacher()
    model(5)
    with pytest.raises(
        ConfigurationError, match=r"inner\.table \(2,\) now \(5,\)\); put .* or call reset\(\)"
    ):
        ema.update()
    ema.reset()
    ema.update()
    assert ema.teacher()(5).shape == (1, 5)
