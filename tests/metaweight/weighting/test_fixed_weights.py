"""Weights and losses that are not learned, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from metaweight import ConfigurationError
from metaweight.weighting import class_balanced_weights, focal_loss, normalise_weights


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_normalised_weights_have_mean_one_and_keep_their_ratios(shape: tuple[int, ...]) -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.2], dtype=torch.float64).reshape(shape)
    normalised = normalise_weights(weights)
    assert normalised.shape == shape
    # The sum is 0.8: 0.1 * 4 / 0.8 = 0.5 and so on.
    torch.testing.assert_close(
        normalised.reshape(-1), torch.tensor([0.5, 1.0, 1.5, 1.0], dtype=torch.float64)
    )


def test_weights_of_zero_stay_zero_with_a_finite_gradient() -> None:
    weights = torch.zeros(3, requires_grad=True)
    normalised = normalise_weights(weights)
    assert normalised.tolist() == [0.0, 0.0, 0.0]
    (normalised * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert weights.grad.isfinite().all()


def test_normalising_is_differentiated() -> None:
    weights = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalise_weights, (weights,))


def test_class_balanced_weights_are_inverse_effective_numbers() -> None:
    counts, beta = [100, 10, 1], 0.9
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    expected = torch.tensor([r / (sum(raw) / 3) for r in raw])
    torch.testing.assert_close(class_balanced_weights(torch.tensor(counts), beta), expected)


def test_beta_zero_weighs_all_classes_alike() -> None:
    assert class_balanced_weights(torch.tensor([100, 10, 1]), 0.0).tolist() == [1.0, 1.0, 1.0]


def test_beta_one_weighs_by_inverse_frequency_and_is_the_limit() -> None:
    counts = torch.tensor([4, 2, 1])
    # 1/4, 1/2, 1 with mean 7/12.
    expected = torch.tensor([3 / 7, 6 / 7, 12 / 7])
    torch.testing.assert_close(class_balanced_weights(counts, 1.0), expected)
    torch.testing.assert_close(
        class_balanced_weights(counts, 1 - 1e-7), expected, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_a_class_without_samples_gets_no_weight(beta: float) -> None:
    weights = class_balanced_weights(torch.tensor([5, 0, 5]), beta)
    assert weights.tolist() == [1.5, 0.0, 1.5]


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ConfigurationError, match=r"beta=.* needs beta in \[0, 1\]"):
        class_balanced_weights(torch.tensor([1, 2]), beta)


def test_no_samples_at_all_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"with 0 samples needs .* at least one sample"):
        class_balanced_weights(torch.zeros(3).long())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_equals_its_formula(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1)[torch.arange(6), labels]
    naive = -((1 - p) ** gamma) * p.log()
    torch.testing.assert_close(focal_loss(logits, labels, gamma, "none"), naive)
    torch.testing.assert_close(focal_loss(logits, labels, gamma), naive.mean())
    torch.testing.assert_close(focal_loss(logits, labels, gamma, "sum"), naive.sum())


def test_gamma_zero_is_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(focal_loss(logits, labels, 0.0), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("size", [-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(gamma: float, size: float) -> None:
    logits = torch.tensor([[size, -size]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0]), gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_a_certain_label_has_no_gradient_below_gamma_one(size: float) -> None:
    logits = torch.tensor([[size, -size]], requires_grad=True)
    focal_loss(logits, torch.tensor([0]), 0.5).backward()
    assert logits.grad.abs().max() < 1e-30


def test_digits_are_kept_where_the_label_is_almost_certain() -> None:
    logits = torch.tensor([[18.0, 0.0]])
    # 1 - p = e^-18 / (1 + e^-18) and -log p = log(1 + e^-18), beyond single precision at p.
    rest = math.exp(-18) / (1 + math.exp(-18))
    expected = rest**2 * math.log1p(math.exp(-18))
    assert focal_loss(logits, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", [{"gamma": -1.0}, {"reduction": "average"}])
def test_other_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="needs gamma >= 0 and a reduction of 'none'"):
        focal_loss(torch.zeros(1, 2), torch.tensor([0]), **settings)  # type: ignore[arg-type]
