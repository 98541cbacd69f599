"""Bootstrapping losses against values worked out by hand and sums written as loops."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from metaweight.problems import ConfigurationError, LossError

from metaweight.noise import HardBootstrappingLoss, SoftBootstrappingLoss

KINDS = [SoftBootstrappingLoss, HardBootstrappingLoss]
# Everything here is a handful of float64 operations.
EXACT = {"rtol": 0, "atol": 1e-12}


def quiet(beta: float) -> SoftBootstrappingLoss:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SoftBootstrappingLoss(beta, detach=True)


def random_batch(seed: int, size: int = 7, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, generator=source, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=source)


def naive(logits, labels, betas, hard):
    """The definition, one sample and one class at a time."""
    losses = []
    for row, label, beta in zip(logits.tolist(), labels.tolist(), betas, strict=True):
        total = sum(math.exp(z) for z in row)
        p = [math.exp(z) / total for z in row]
        z = [float(k == p.index(max(p))) for k in range(len(p))] if hard else p
        target = [beta * (k == label) + (1 - beta) * z[k] for k in range(len(p))]
        losses.append(-sum(t * math.log(q) for t, q in zip(target, p, strict=True)))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [
        (SoftBootstrappingLoss(1.0), 1.3862943611, 0.75),
        (SoftBootstrappingLoss(), 1.3450964003, 0.7022005098),
        (quiet(0.95), 1.3450964003, 0.7125),
        (HardBootstrappingLoss(), 1.1665719034, 0.55),
    ],
)
def test_values_and_gradients_worked_out(loss, value, slope):
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    result = loss(logits, torch.tensor([1]))
    assert result.item() == pytest.approx(value, abs=1e-9)
    (gradient,) = torch.autograd.grad(result, logits)
    assert gradient[0].tolist() == pytest.approx([slope, -slope], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), beta=st.floats(0, 1))
def test_it_is_the_sum_of_its_definition(kind, seed, beta):
    logits, labels = random_batch(seed)
    found = kind(beta, reduction="none")(logits, labels)
    expected = naive(logits, labels, [beta] * len(labels), kind is HardBootstrappingLoss)
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(kind(beta)(logits, labels), expected.mean(), **EXACT)
    torch.testing.assert_close(
        kind(beta, reduction="sum")(logits, labels), expected.sum(), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind):
    logits, labels = random_batch(0)
    labels[2] = -1
    beta = torch.linspace(0.1, 0.9, len(labels), dtype=torch.float64)
    inputs = (logits.requires_grad_(), beta.requires_grad_())
    assert torch.autograd.gradcheck(lambda z, b: kind()(z, labels, b), inputs)
    assert torch.autograd.gradgradcheck(lambda z, b: kind()(z, labels, b), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (7, 1)])
def test_beta_may_be_a_tensor_of_the_module_or_of_the_call(kind, shape):
    logits, labels = random_batch(1)
    beta = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = naive(
        logits,
        labels,
        beta.expand(7).tolist() if beta.numel() == 1 else beta.reshape(-1).tolist(),
        kind is HardBootstrappingLoss,
    )
    for found in (kind(beta)(logits, labels), kind()(logits, labels, beta)):
        torch.testing.assert_close(found, expected.mean(), **EXACT)


def test_the_derivative_by_beta_is_cross_entropy_less_the_own_prediction():
    logits, labels = random_batch(2)
    for kind in KINDS:
        beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(kind()(logits, labels, beta), beta)
        ends = [kind(b)(logits, labels) for b in (1.0, 0.0)]
        torch.testing.assert_close(found, ends[0] - ends[1], **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_labels_have_no_loss_and_no_gradient(kind):
    logits, labels = random_batch(3)
    marked = labels.clone()
    marked[[1, 4]] = -1
    kept = marked >= 0
    torch.testing.assert_close(kind()(logits, marked), kind()(logits[kept], labels[kept]), **EXACT)
    each = kind(reduction="none")(logits.requires_grad_(), marked)
    assert each[~kept].tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(each.sum(), logits)
    assert not gradient[~kept].any()
    assert gradient[kept].any(dim=1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [0, 3])
def test_without_a_label_that_counts_the_loss_is_zero_with_a_graph(kind, reduction, size):
    logits = torch.randn(size, 4, requires_grad=True)
    loss = kind(reduction=reduction)(logits, torch.full((size,), -1))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(kind, dtype):
    logits, labels = random_batch(4)
    half = logits.to(dtype)
    found = kind()(half, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, kind()(half.float(), labels), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = kind()(half, labels)
    torch.testing.assert_close(inside, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-6e4, 6e4, 0.0]], requires_grad=True)
    loss = kind()(logits, torch.tensor([1, 1]))
    loss.backward()
    # Right sample 0, wrong one 2e4 by cross-entropy; entropy and likeliest class add nothing.
    assert loss.item() == pytest.approx(kind().beta * 2e4 / 2, rel=1e-6)
    assert logits.grad.isfinite().all()


def test_a_reduction_can_be_asked_for_with_the_call():
    logits, labels = random_batch(5)
    for kind in KINDS:
        assert kind()(logits, labels, reduction="none").shape == (7,)


def test_a_detached_target_is_announced_and_has_the_gradient_of_cross_entropy():
    with pytest.warns(UserWarning, match=r"exactly the gradient of beta times cross-entropy"):
        loss = SoftBootstrappingLoss(0.6, detach=True)
    logits, labels = random_batch(6)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(loss(logits, labels), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    torch.testing.assert_close(found, 0.6 * plain, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.1}, r"beta=1.1\) is not a share of trust.*\[0, 1\]"),
        ({"beta": -0.1}, r"beta=-0.1\)"),
        ({"beta": float("nan")}, r"beta=nan\)"),
        ({"reduction": "max"}, r"reduction='max'\) is not one of none, mean, sum; choose"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"shape \(3,\) .*give.*\(B, C\)"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.arange(3), "type torch.int64 were given"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), r"for 3 rows of logits; .*\(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3), r"type torch.float32 .*give int64"),
        (torch.zeros(3, 2), torch.arange(3), r"span 0 to 2 for logits of 2 classes; .*\[0, 2\)"),
        (torch.zeros(2, 2), torch.tensor([0, -2]), r"span -2 to 0 .* or ignore_index"),
    ],
)
def test_batches_that_do_not_fit_are_refused(kind, logits, labels, message):
    with pytest.raises(LossError, match=message):
        kind()(logits, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_beta_of_another_number_of_samples_is_refused(kind):
    with pytest.raises(LossError, match=r"beta of shape \(3,\) was given for 7 samples"):
        kind()(*random_batch(0), torch.rand(3))
    with pytest.raises(ConfigurationError, match=r"beta=2\) is not a share"):
        kind()(*random_batch(0), 2)
