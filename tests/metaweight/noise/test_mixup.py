"""mixup: its arithmetic by hand, its draws against the Beta distribution."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from metaweight.problems import ConfigurationError, DataError, LossError
from support.devices import DEVICES, no_waiting

from metaweight._beta import draw_symmetric_beta
from metaweight.noise import SoftBootstrappingLoss, mix_pairs, mixup, mixup_accuracy, mixup_loss

LN3 = torch.tensor(3.0, dtype=torch.float64).log().item()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(shape: tuple[int, ...] = (6, 3), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = generator(seed)
    inputs = torch.randn(shape, generator=source, dtype=torch.float64)
    return inputs, torch.randint(4, shape[:1], generator=source)


def draws(alpha: float, size: int, seed: int = 0) -> torch.Tensor:
    concentration = torch.tensor(alpha, dtype=torch.float64)
    return draw_symmetric_beta(concentration, (size,), generator(seed))


def test_a_mixture_and_its_loss_worked_out():
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    labels, share = torch.tensor([0, 1]), torch.tensor(0.25, dtype=torch.float64)
    mixed = mix_pairs(inputs, labels, share, torch.tensor([1, 0]))
    assert mixed.inputs.tolist() == [[2.5, 3.5], [1.5, 2.5]]
    assert mixed.labels_a.tolist() == [0, 1]
    assert mixed.labels_b.tolist() == [1, 0]
    logits = torch.tensor([[0.0, 0.0], [LN3, 0.0]], dtype=torch.float64)
    loss = mixup_loss(logits, *mixed[1:])
    assert loss.item() == pytest.approx(0.6277411626, abs=1e-9)
    one_hot = F.one_hot(labels, 2).double()
    soft = F.cross_entropy(logits, 0.25 * one_hot + 0.75 * one_hot.flip(0))
    assert loss.item() == pytest.approx(soft.item(), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0, 500.0])
def test_draws_follow_the_beta_distribution(alpha):
    # One fixed seed: a correct sampler fails a test at this level once in 100 seeds.
    result = scipy.stats.kstest(draws(alpha, 20_000).numpy(), scipy.stats.beta(alpha, alpha).cdf)
    assert result.pvalue > 0.01


def test_small_concentrations_keep_the_law_of_their_lower_half():
    # Of the upper half, what is closer to 1 than 1e-16 can only be 1: a twelfth of all draws.
    found = draws(0.05, 20_000)
    lower = found[found < 0.5].numpy()
    # Binomial with n = 20 000 and p = 1/2: five standard deviations are 354.
    assert abs(len(lower) - 10_000) < 354
    beta = scipy.stats.beta(0.05, 0.05)
    assert scipy.stats.kstest(lower, lambda x: 2 * beta.cdf(x)).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_draws_in_single_precision_keep_the_law_of_their_lower_half(alpha):
    found = draw_symmetric_beta(torch.tensor(alpha), (20_000,), generator())
    assert found.dtype == torch.float32
    lower = found[found < 0.5].numpy()
    assert abs(len(lower) - 10_000) < 354
    beta = scipy.stats.beta(alpha, alpha)
    assert scipy.stats.kstest(lower, lambda x: 2 * beta.cdf(x)).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.0, 1e-30, 1e-15, 1e-4])
def test_draws_in_single_precision_have_finite_derivatives(alpha):
    concentration = torch.tensor(alpha, requires_grad=True)
    found = draw_symmetric_beta(concentration, (1000,), generator())
    (slope,) = torch.autograd.grad(found.sum(), concentration)
    assert found.isfinite().all()
    assert slope.isfinite()


def test_tiny_concentrations_are_a_fair_coin():
    found = draws(1e-4, 10_000)
    assert found.isfinite().all()
    assert ((found < 1e-6) | (found > 1 - 1e-6)).double().mean() > 0.99
    # Binomial with n = 10 000 and p = 1/2: five standard deviations are 0.025.
    assert abs(found.mean() - 0.5) < 0.025


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_the_derivative_of_the_draws_is_that_of_the_expectation(alpha):
    concentration = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    size = 100_000
    each = concentration.expand(size).clone()
    found = draw_symmetric_beta(each, (size,), generator())
    found = found * (1 - found)
    (slopes,) = torch.autograd.grad(found.sum(), each)
    # E[d (1 - d)] = a / (2 (2a + 1)) has the derivative 1 / (2 (2a + 1)²).
    error = slopes.std() / size**0.5
    assert abs(slopes.mean() - 0.5 / (2 * alpha + 1) ** 2) < 4 * error
    assert error < 0.01


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 1, 4, 4)])
def test_each_sample_is_mixed_with_one_of_the_batch(shape, per_sample):
    inputs, _ = batch(shape)
    numbers = torch.arange(5)
    mixed = mixup(inputs, numbers, 0.7, per_sample=per_sample, generator=generator(3))
    assert mixed.d.shape == ((5,) if per_sample else ())
    assert sorted(mixed.labels_b.tolist()) == numbers.tolist()
    for i, j in enumerate(mixed.labels_b.tolist()):
        d = mixed.d[i] if per_sample else mixed.d
        torch.testing.assert_close(
            mixed.inputs[i], d * inputs[i] + (1 - d) * inputs[j], rtol=0, atol=1e-15
        )


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 9),
    alpha=st.floats(0, 50),
    per_sample=st.booleans(),
)
def test_draws_are_reproducible_and_inputs_untouched(seed, size, alpha, per_sample):
    inputs, labels = batch((size, 2), seed)
    before = inputs.clone(), labels.clone(), torch.random.get_rng_state()
    first, again = (
        mixup(inputs, labels, alpha, per_sample=per_sample, generator=generator(seed))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(inputs, before[0])
    assert torch.equal(labels, before[1])
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert ((first.d >= 0) & (first.d <= 1)).all()
    low, high = inputs.min(), inputs.max()
    # A convex combination, but for the rounding of two products and a sum.
    assert ((first.inputs >= low - 1e-12) & (first.inputs <= high + 1e-12)).all()


def test_without_a_generator_torch_s_own_stream_is_used_and_can_be_replayed():
    inputs, labels = batch()
    with torch.random.fork_rng():
        state = torch.random.get_rng_state()
        first = mixup(inputs, labels, 0.5)
        second = mixup(inputs, labels, 0.5)
        torch.random.set_rng_state(state)
        again = mixup(inputs, labels, 0.5)
    assert torch.equal(first.d, again.d)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.d, second.d)


@pytest.mark.parametrize("alpha", [0, 0.0, torch.tensor(0.0)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_alpha_zero_mixes_nothing(alpha, per_sample):
    inputs, labels = batch()
    mixed = mixup(inputs, labels, alpha, per_sample=per_sample, generator=generator())
    assert (mixed.d == 1).all()
    assert torch.equal(mixed.inputs, inputs)


def test_the_result_is_differentiable_in_alpha():
    inputs, labels = batch()
    weight = torch.ones(3, 4, dtype=torch.float64)

    def loss(a: torch.Tensor) -> torch.Tensor:
        mixed = mixup(inputs, labels, a, per_sample=True, generator=generator(5))
        return mixup_loss(mixed.inputs.cumsum(1) @ weight.cumsum(0), *mixed[1:])

    alpha = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(alpha), alpha)
    # The same by the chain rule through d, whose own derivative was judged above.
    mixed = mixup(inputs, labels, alpha, per_sample=True, generator=generator(5))
    d = mixed.d.detach().requires_grad_()
    order = mixup(inputs, torch.arange(6), alpha, per_sample=True, generator=generator(5)).labels_b
    again = mix_pairs(inputs, labels, d, order)
    (by_d,) = torch.autograd.grad(
        mixup_loss(again.inputs.cumsum(1) @ weight.cumsum(0), *again[1:]), d
    )
    (expected,) = torch.autograd.grad((mixed.d * by_d).sum(), alpha)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert found != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_inputs_keep_their_type_and_shares_are_single(dtype):
    inputs, labels = batch()
    mixed = mixup(inputs.to(dtype), labels, 0.5, generator=generator())
    assert mixed.inputs.dtype == dtype
    assert mixed.d.dtype == torch.float32
    loss = mixup_loss(torch.randn(6, 4).to(dtype), *mixed[1:])
    assert loss.dtype == torch.float32


def test_labels_may_be_probabilities():
    inputs, labels = batch()
    one_hot = F.one_hot(labels, 4).double()
    logits = torch.randn(6, 4, generator=generator(), dtype=torch.float64)
    hard, soft = (mixup(inputs, y, 0.5, generator=generator(1)) for y in (labels, one_hot))
    torch.testing.assert_close(
        mixup_loss(logits, *hard[1:]), mixup_loss(logits, *soft[1:]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("criterion", [F.cross_entropy, SoftBootstrappingLoss(0.8)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_loss_is_the_combination_of_two(criterion, per_sample):
    inputs, labels = batch()
    mixed = mixup(inputs, labels, 0.5, per_sample=per_sample, generator=generator(2))
    logits = torch.randn(6, 4, generator=generator(), dtype=torch.float64)
    shares = mixed.d.expand(6).tolist()
    expected = torch.stack(
        [
            d * criterion(z, a) + (1 - d) * criterion(z, b)
            for z, a, b, d in zip(
                logits.split(1),
                mixed.labels_a.split(1),
                mixed.labels_b.split(1),
                shares,
                strict=True,
            )
        ]
    )
    each = mixup_loss(logits, *mixed[1:], criterion=criterion, reduction="none")
    torch.testing.assert_close(each, expected, rtol=0, atol=1e-12)
    for reduction in ("mean", "sum"):
        found = mixup_loss(logits, *mixed[1:], criterion=criterion, reduction=reduction)
        torch.testing.assert_close(found, getattr(expected, reduction)(), rtol=0, atol=1e-12)


def test_accuracy_counts_both_labels_by_their_shares():
    logits = torch.eye(3)
    a, b = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 0])
    assert mixup_accuracy(logits, a, b, torch.tensor(0.25)).item() == pytest.approx(1 / 3)
    shares = torch.tensor([0.5, 0.25, 1.0])
    assert mixup_accuracy(logits, a, b, shares).item() == pytest.approx((0.5 + 0.75) / 3)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0), r"shape \(0, 3\); give at least one sample"),
        (torch.tensor(1.0), torch.zeros(1), r"shape \(\); give"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2), "uint8, .* convert them to float"),
        (torch.zeros(2, 3), torch.zeros(3), r"labels of shape \(3,\) for 2 inputs; give one"),
    ],
)
def test_batches_that_cannot_be_mixed_are_refused(inputs, labels, message):
    with pytest.raises(DataError, match=message):
        mixup(inputs, labels)


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (-0.1, r"alpha=-0.1\) .*at least 0"),
        (float("nan"), "alpha=nan"),
        (float("inf"), "alpha=inf"),
        (torch.ones(2), r"alpha of shape \(2,\); give one number"),
    ],
)
def test_concentrations_that_make_no_sense_are_refused(alpha, message):
    with pytest.raises(ConfigurationError, match=message):
        mixup(*batch(), alpha)


def test_a_loss_that_is_not_per_sample_is_refused():
    logits, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(LossError, match=r"returned shape \(\) for 3 samples"):
        mixup_loss(
            logits, labels, labels, torch.tensor(0.5), criterion=lambda z, y, reduction: z.sum()
        )
    with pytest.raises(ConfigurationError, match="reduction='max'"):
        mixup_loss(logits, labels, labels, torch.tensor(0.5), reduction="max")


@pytest.mark.parametrize("device", DEVICES)
def test_draws_stay_on_the_device_or_come_from_the_host_s_generator(device):
    inputs, labels = (t.to(device) for t in batch())
    with no_waiting(device):
        mixed = mixup(inputs, labels, 0.5, per_sample=True)
        mixup_loss(torch.zeros(6, 4, device=device), *mixed[1:])
    here = mixup(*batch(), 0.5, generator=generator())
    there = mixup(inputs, labels, 0.5, generator=generator())
    assert there.inputs.device.type == device
    torch.testing.assert_close(there.inputs.cpu(), here.inputs, rtol=0, atol=1e-12)
    if device != "cpu":
        with pytest.raises(ConfigurationError, match="A generator on cpu was given"):
            mixup(inputs, labels, torch.tensor(0.5, device=device), generator=generator())
