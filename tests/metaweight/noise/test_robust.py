"""Generalised and symmetric cross-entropy against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from metaweight.problems import ConfigurationError

from metaweight.noise import GeneralisedCrossEntropy, SymmetricCrossEntropy

LOSSES = [GeneralisedCrossEntropy(), GeneralisedCrossEntropy(0.4, 0.1), SymmetricCrossEntropy()]


def batch(seed: int, size: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, classes, generator=source, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=source)


def probabilities(row: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), q=st.floats(0.05, 1), k=st.floats(0, 0.6))
def test_generalised_cross_entropy_is_its_definition(seed, q, k):
    logits, labels = batch(seed)
    expected = [
        (1 - max(probabilities(row)[label], k) ** q) / q
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    found = GeneralisedCrossEntropy(q, k, reduction="none")(logits, labels)
    # 1 - p^q and its division by q ≥ 0.05 lose up to 20 units of rounding.
    assert found.tolist() == pytest.approx(expected, abs=1e-13)
    mean = GeneralisedCrossEntropy(q, k)(logits, labels)
    assert mean.item() == pytest.approx(sum(expected) / 6, abs=1e-13)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.floats(0, 5),
    beta=st.floats(0, 5),
    log_zero=st.floats(-9, -0.1),
)
def test_symmetric_cross_entropy_is_its_definition(seed, alpha, beta, log_zero):
    logits, labels = batch(seed)
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = probabilities(row)
        target = [float(k == label) for k in range(4)]
        forward = -sum(t * math.log(q) for t, q in zip(target, p, strict=True))
        logs = [0.0 if t else log_zero for t in target]
        reverse = -sum(q * t for q, t in zip(p, logs, strict=True))
        expected.append(alpha * forward + beta * reverse)
    found = SymmetricCrossEntropy(alpha, beta, log_zero, reduction="none")(logits, labels)
    # Values up to a few hundred, of a dozen float64 operations.
    assert found.tolist() == pytest.approx(expected, abs=1e-11)
    total = SymmetricCrossEntropy(alpha, beta, log_zero, reduction="sum")(logits, labels)
    assert total.item() == pytest.approx(sum(expected), abs=1e-10)


def test_the_limits_of_q():
    logits, labels = batch(0)
    entropy = F.cross_entropy(logits, labels)
    assert torch.equal(GeneralisedCrossEntropy(0.0)(logits, labels), entropy)
    # The series in q is l - q l² / 2 + …, with l² below 100 here; a plain 1 - p^q would have
    # lost all but four digits at this q.
    tiny = GeneralisedCrossEntropy(1e-12)(logits, labels)
    torch.testing.assert_close(tiny, entropy, rtol=0, atol=1e-10)
    p = logits.softmax(1)
    absolute = (p - F.one_hot(labels, 4)).abs().sum(1) / 2
    torch.testing.assert_close(
        GeneralisedCrossEntropy(1.0)(logits, labels), absolute.mean(), rtol=0, atol=1e-13
    )


def test_truncation_stops_the_gradient_of_unlikely_labels():
    logits = torch.tensor([[0.0, 3.0], [3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = GeneralisedCrossEntropy(0.7, 0.5, reduction="none")(logits, torch.tensor([0, 0]))
    assert loss[0].item() == pytest.approx((1 - 0.5**0.7) / 0.7, abs=1e-14)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient[0].any()
    assert gradient[1].all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_by_finite_differences(loss):
    logits, labels = batch(1)
    labels[3] = -1
    inputs = (logits.requires_grad_(),)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), inputs)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels), inputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_labels_do_not_count(loss):
    logits, labels = batch(2)
    marked = labels.clone()
    marked[[0, 5]] = -1
    kept = marked >= 0
    torch.testing.assert_close(
        loss(logits, marked), loss(logits[kept], labels[kept]), rtol=0, atol=1e-14
    )
    logits.requires_grad_()
    nothing = loss(logits, torch.full_like(labels, -1))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", [GeneralisedCrossEntropy(), SymmetricCrossEntropy()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite(loss, dtype):
    logits = torch.tensor([[6e4, -6e4], [-6e4, 6e4]], dtype=dtype, requires_grad=True)
    values = loss(logits, torch.tensor([1, 1]), reduction="none")
    values.sum().backward()
    assert values.dtype == torch.float32
    margin = logits[0].tolist()[0] - logits[0].tolist()[1]
    worst = 0.1 * margin + 4 if isinstance(loss, SymmetricCrossEntropy) else 1 / 0.7
    assert values.tolist() == pytest.approx([worst, 0.0], rel=1e-6)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (GeneralisedCrossEntropy, {"q": 1.5}, r"q=1.5, truncation=0.0\) .*q in \[0, 1\]"),
        (GeneralisedCrossEntropy, {"q": -0.5}, "q=-0.5"),
        (GeneralisedCrossEntropy, {"truncation": 1.0}, r"truncation=1.0.*truncation in \[0, 1\)"),
        (SymmetricCrossEntropy, {"alpha": -1.0}, r"alpha=-1.0, .*weights of at least 0"),
        (SymmetricCrossEntropy, {"beta": float("inf")}, "beta=inf"),
        (SymmetricCrossEntropy, {"log_zero": 0.0}, "log_zero=0.0.*below 0"),
        (SymmetricCrossEntropy, {"reduction": "all"}, "reduction='all'.* choose one of these"),
        (GeneralisedCrossEntropy, {"reduction": "all"}, "GeneralisedCrossEntropy.*'all'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**arguments)
