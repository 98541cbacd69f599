"""Logit adjustment and label-distribution-aware margins, sample by sample and class by class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from metaweight import ConfigurationError, LossError
from metaweight.weighting import LDAMLoss, LogitAdjustedLoss, NormalisedLinear

COUNTS = [500, 60, 8, 3]
LOSSES = [LogitAdjustedLoss(COUNTS), LogitAdjustedLoss(COUNTS, 0.4), LDAMLoss(COUNTS)]


def batch(seed: int = 0, size: int = 9) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 4, generator=source, dtype=torch.float64)
    return logits, torch.randint(4, (size,), generator=source)


def entropy(row: list[float], label: int) -> float:
    """Cross-entropy of one sample, in Python's double precision."""
    return math.log(sum(math.exp(z) for z in row)) - row[label]


def adjusted(row: list[float], label: int, tau: float) -> float:
    return entropy(
        [z + tau * math.log(n / sum(COUNTS)) for z, n in zip(row, COUNTS, strict=True)], label
    )


def with_margin(row: list[float], label: int, most: float, scale: float) -> float:
    unscaled = [n**-0.25 for n in COUNTS]
    margins = [most * each / max(unscaled) for each in unscaled]
    lowered = [scale * (z - margins[k] * (k == label)) for k, z in enumerate(row)]
    return entropy(lowered, label)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 2.5])
def test_logit_adjustment_is_its_formula(tau: float) -> None:
    logits, labels = batch()
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    naive = [adjusted(row, label, tau) for row, label in rows]
    loss = LogitAdjustedLoss(torch.tensor(COUNTS), tau)
    # A dozen float64 operations on numbers up to 20.
    assert loss(logits, labels, reduction="none").tolist() == pytest.approx(naive, abs=1e-12)
    assert loss(logits, labels).item() == pytest.approx(sum(naive) / 9, abs=1e-12)
    assert loss(logits, labels, reduction="sum").item() == pytest.approx(sum(naive), abs=1e-11)


def test_balanced_softmax_is_the_default() -> None:
    logits, labels = batch(1)
    # Ren et al.: n_y e^{z_y} / Σ_k n_k e^{z_k}.
    weighted = torch.tensor(COUNTS).double() * logits.exp()
    naive = -(weighted / weighted.sum(1, keepdim=True)).gather(1, labels.unsqueeze(1)).log()
    torch.testing.assert_close(LogitAdjustedLoss(COUNTS)(logits, labels), naive.mean())


def test_without_adjustment_it_is_cross_entropy() -> None:
    logits, labels = batch(2)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(LogitAdjustedLoss(COUNTS, 0.0)(logits, labels), expected)
    torch.testing.assert_close(LogitAdjustedLoss([7] * 4, 3.0)(logits, labels), expected)


def test_its_minimum_is_the_least_balanced_error() -> None:
    # One cell of inputs with 90 of 900 samples of class 0 and all 10 of class 1: the error within
    # classes is least when it is given to class 1, by odds of (10 / 10) / (90 / 900).
    cell = torch.tensor([0] * 90 + [1] * 10)
    for tau, odds in ((0.0, 10 / 90), (1.0, 10.0)):
        z = torch.tensor([[0.0, math.log(odds)]], dtype=torch.float64, requires_grad=True)
        LogitAdjustedLoss([900, 10], tau)(z.expand(100, 2), cell).backward()
        assert z.grad is not None and z.grad.abs().max() < 1e-12


@pytest.mark.parametrize(("most", "scale"), [(0.5, 30.0), (0.2, 1.0), (1.5, 4.0)])
def test_margins_are_their_formula(most: float, scale: float) -> None:
    logits, labels = batch(3)
    cosines = logits.tanh()
    rows = zip(cosines.tolist(), labels.tolist(), strict=True)
    naive = [with_margin(row, label, most, scale) for row, label in rows]
    loss = LDAMLoss(COUNTS, most, scale)
    # Values up to 60 of a dozen float64 operations.
    found = loss(cosines, labels, reduction="none")
    assert found.tolist() == pytest.approx(naive, abs=1e-11)
    assert loss(cosines, labels).item() == pytest.approx(sum(naive) / 9, abs=1e-11)


def test_the_margin_of_the_rarest_class_is_the_largest() -> None:
    # At equal logits the loss of class c is log(1 + 3 e^{Δ_c}).
    each = LDAMLoss(COUNTS, 0.5, 1.0)(torch.zeros(4, 4).double(), torch.arange(4), reduction="none")
    margins = ((each.exp() - 1) / 3).log()
    expected = [0.5 * (3 / n) ** 0.25 for n in COUNTS]
    assert margins.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_normalised_layer_gives_cosines() -> None:
    torch.default_generator.manual_seed(0)
    layer = NormalisedLinear(5, 3).double()
    x = 3 * torch.randn(4, 5, dtype=torch.float64)
    naive = [[F.cosine_similarity(a, w, dim=0).item() for w in layer.weight] for a in x]
    torch.testing.assert_close(layer(x), torch.tensor(naive).double(), rtol=0, atol=1e-7)
    assert layer.weight.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    with torch.no_grad():
        layer.weight.mul_(7)
    torch.testing.assert_close(layer(x), torch.tensor(naive).double(), rtol=0, atol=1e-7)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_features_of_zero_have_no_direction_and_no_gradient() -> None:
    layer = NormalisedLinear(5, 3)
    x = torch.cat([torch.zeros(1, 5), torch.ones(1, 5)]).requires_grad_()
    found = layer(x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert not found[0].any() and not gradient[0].any() and not second[0].any()
    assert gradient[1].any() and gradient.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_by_finite_differences(loss: Any) -> None:
    logits, labels = batch(4, size=4)
    logits, labels[3] = logits.tanh().requires_grad_(), -1
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels), (logits,))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_single(loss: Any, dtype: torch.dtype) -> None:
    logits, labels = batch(5)
    rough = logits.tanh().to(dtype)
    again = type(loss)(COUNTS).to(dtype)
    assert again.counts.tolist() == COUNTS
    found = again(rough, labels)
    assert found.dtype == torch.float32
    expected = type(loss)(COUNTS)(rough.double(), labels).item()
    # Single precision, of losses up to 60.
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_read_back_and_settings_are_no_state(loss: Any) -> None:
    assert not loss.state_dict()
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.randn(6, 4, requires_grad=True)
        loss(logits, torch.randint(0, 4, (6,))).backward()


@pytest.mark.parametrize("kind", [LogitAdjustedLoss, LDAMLoss])
def test_counts_and_shapes_that_do_not_fit_are_refused(kind: Any) -> None:
    name = kind.__name__
    with pytest.raises(ConfigurationError, match=f"{name} .*no sample of class 2.* count of 1"):
        kind([5, 3, 0, 1])
    with pytest.raises(ConfigurationError, match=f"{name} .*-3 at index 1"):
        kind([5, -3, 1])
    with pytest.raises(ConfigurationError, match=f"{name}.* 'all'|{name}.*reduction='all'"):
        kind(COUNTS, reduction="all")
    with pytest.raises(LossError, match=rf"{name} was made for 4 classes.*\(9, 3\); give \(B, 4\)"):
        kind(COUNTS)(batch()[0][:, :3], torch.zeros(9).long())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitAdjustedLoss(COUNTS, -1.0), r"tau=-1.0.* at least 0 .*Balanced Softmax"),
        (lambda: LogitAdjustedLoss(COUNTS, math.inf), "tau=inf"),
        (lambda: LDAMLoss(COUNTS, 0.0), r"max_margin=0.0, scale=30.0\) .*above 0"),
        (lambda: LDAMLoss(COUNTS, scale=-1.0), "scale=-1.0"),
        (lambda: NormalisedLinear(0, 3), r"in_features=0, out_features=3\).*at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
