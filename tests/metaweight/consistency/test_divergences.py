"""Divergences against numbers computed by hand, and at their extremes.

Tolerance 1e-9 in float64, the digits of the numbers; 1e-5 in single precision.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight import ConfigurationError, LossError
from metaweight.consistency import DIVERGENCES, Probabilities, entropy, js, kl, l1, mse

HALF = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
TILTED = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
NAMES = list(DIVERGENCES)


def close(found: Tensor, expected: float) -> None:
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_values_by_hand() -> None:
    """Student [.5, .5], target [.9, .1], as probabilities and as logits."""
    for target in (Probabilities(TILTED), TILTED.log() + 3):
        student = HALF.log() - 1
        close(kl(student, target), 0.3680642072)
        close(kl(student, target, direction="student_target"), 0.5108256238)
        close(mse(student, target), 0.16)
        close(mse(student, target, classes="sum"), 0.32)
        close(l1(student, target), 0.4)
        close(l1(student, target, classes="sum"), 0.8)
        close(js(student, target), 0.1017492251)
    close(js(TILTED.log(), Probabilities(HALF)), 0.1017492251)
    far = torch.tensor([[1000.0, 0.0]], dtype=torch.float64)
    close(js(far, far.flip(1)), math.log(2))


def test_gradient_of_js_by_hand() -> None:
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[math.log(9), 0.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(js(student, target), student)
    expected = torch.tensor([[-0.1059122, 0.1059122]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_that_follows_arrives_at_its_target(name: str) -> None:
    """Minimised by gradient descent, not by the one-hot class of the target."""
    target = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([student], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = DIVERGENCES[name](student, Probabilities(target)).sum()
        # The absolute distance has a kink at its minimum.
        loss = loss.square() if name == "l1" else loss
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    torch.testing.assert_close(student.softmax(-1).detach(), target, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_finite_and_at_least_zero_at_the_extremes(
    name: str, dtype: torch.dtype, size: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    student = (torch.randn(50, 4, generator=generator) * size).to(dtype).requires_grad_()
    targets: list[Any] = [
        (torch.randn(50, 4, generator=generator) * size).to(dtype),
        Probabilities(F.one_hot(torch.arange(50) % 4, 4).to(dtype)),
        student.detach(),
    ]
    for target in targets:
        values = DIVERGENCES[name](student, target)
        (gradient,) = torch.autograd.grad(values.sum(), student)
        assert values.isfinite().all()
        assert gradient.isfinite().all()
        assert (values >= -1e-6).all()
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: DIVERGENCES[name](z, target), student)
    assert torch.autograd.gradgradcheck(lambda z: DIVERGENCES[name](z, target), student)


def test_kl_has_the_gradient_of_the_cross_entropy() -> None:
    student = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 3, dtype=torch.float64).softmax(-1)
    (found,) = torch.autograd.grad(kl(student, Probabilities(target)), student)
    (expected,) = torch.autograd.grad(F.cross_entropy(student, target), student)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", [mse, l1, kl, js])
def test_masked_samples_count_for_nothing_whatever_they_hold(function: Any) -> None:
    student = torch.tensor([[0.0, 0.0], [float("nan"), float("inf")]], requires_grad=True)
    target = torch.tensor([[math.log(3), 0.0], [float("nan"), 0.0]])
    mask = torch.tensor([True, False])
    alone = function(student[:1], target[:1])
    found = {r: function(student, target, mask=mask, reduction=r) for r in ("none", "mean", "sum")}
    torch.testing.assert_close(found["none"], torch.stack([alone, alone * 0]))
    torch.testing.assert_close(found["sum"], alone)
    torch.testing.assert_close(found["mean"], alone / 2)
    torch.testing.assert_close(function(student, target, mask=mask, normalise="masked"), alone)
    (gradient,) = torch.autograd.grad(found["mean"], student)
    assert gradient[1].tolist() == [0.0, 0.0]
    nobody = torch.tensor([False, False])
    for normalise in ("all", "masked"):
        loss = function(student, target, mask=nobody, normalise=normalise)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss == 0
        assert not gradient.any()


def test_no_samples_have_no_divergence() -> None:
    nothing = torch.zeros(0, 3)
    assert all(d(nothing, nothing).shape == (0,) for d in DIVERGENCES.values())
    assert mse(nothing, nothing) == 0
    assert js(nothing, Probabilities(nothing)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_single(name: str) -> None:
    student, target = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = DIVERGENCES[name](student, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, DIVERGENCES[name](student.float(), target.float()))


@pytest.mark.parametrize("function", [mse, l1, kl, js])
def test_targets_have_a_gradient_only_when_asked_to(function: Any) -> None:
    student, target = torch.randn(2, 4, 3, dtype=torch.float64).unbind()
    target.requires_grad_()
    assert not function(student, target).requires_grad
    assert torch.autograd.gradcheck(lambda q: function(student, q, target_grad=True), target)


def test_entropy_by_hand() -> None:
    """Zero logits of 2 classes, 2 of 4 samples masked."""
    mask = torch.tensor([False, False, True, True])
    close(entropy(torch.zeros(4, 2, dtype=torch.float64), mask=mask), 0.3465735903)
    masked = entropy(torch.zeros(4, 2, dtype=torch.float64), normalise="masked", mask=mask)
    close(masked, math.log(2))
    assert entropy(torch.tensor([[1e4, 0.0]])) == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mse(torch.zeros(2, 1), torch.zeros(2, 1)), LossError, "at least 2"),
        (lambda: kl(torch.zeros(2, 3), torch.zeros(2, 4)), LossError, r"\(2, 3\).*\(2, 4\)"),
        (lambda: kl(torch.zeros(3), torch.zeros(3)), LossError, r"\(N, C\)"),
        (lambda: js(torch.zeros(2, 3), torch.zeros(2, 3).long()), LossError, "int64"),
        (
            lambda: l1(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(2)),
            LossError,
            "give bool of shape",
        ),
        (
            lambda: l1(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(3).bool()),
            LossError,
            r"mask of shape \(3,\)",
        ),
        (
            lambda: mse(torch.zeros(2, 3), torch.zeros(2, 3), classes="max"),  # type: ignore[arg-type]
            ConfigurationError,
            "mean, sum",
        ),
        (
            lambda: kl(torch.zeros(2, 3), torch.zeros(2, 3), direction="forward"),  # type: ignore[arg-type]
            ConfigurationError,
            "target_student",
        ),
        (
            lambda: mse(torch.zeros(2, 3), torch.zeros(2, 3), normalise="part"),  # type: ignore[arg-type]
            ConfigurationError,
            "all, masked",
        ),
        (
            lambda: mse(torch.zeros(2, 3), torch.zeros(2, 3), reduction="batch"),
            ConfigurationError,
            "none, mean, sum",
        ),
        (lambda: Probabilities(torch.tensor([[1.5, -0.5]])), LossError, "least value of -0.5"),
        (lambda: Probabilities(torch.tensor([[0.5, 0.4]])), LossError, "off 1 by up to 0.1"),
        (lambda: Probabilities(torch.tensor([[float("nan"), 0.4]])), LossError, "nan"),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
