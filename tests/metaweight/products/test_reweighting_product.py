"""The product of native reweighting against double backward of the weighted loss, in float64."""

from __future__ import annotations

import pytest
import torch
from support.naive import relative_error
from torch.nn import functional as F

from metaweight.products import mixed_vector_product, reweighting_product

# A central difference has an error of alpha², a one-sided one of alpha; forward mode of rounding.
CASES = {
    "central_difference": (1e-3, 1e-5),
    "one_sided": (1e-5, 1e-3),
    "forward_mode": (None, 1e-12),
}


def program(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    judge = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    for p in (*net.parameters(), *judge.parameters()):
        p.data = torch.randn(p.shape, generator=generator)
    net, judge = net.to(dtype), judge.to(dtype)
    x = torch.randn(8, 4, generator=generator).to(dtype)
    y = torch.randint(3, (8,), generator=generator)
    names = [name for name, _ in net.named_parameters()]

    def losses(params):
        tensors = dict(zip(names, params, strict=True))
        output = torch.func.functional_call(net, tensors, (x,))
        return F.cross_entropy(output, y, reduction="none")

    params = list(net.parameters())
    vector = [torch.randn(p.shape, generator=generator).to(dtype) for p in params]
    return losses, judge, params, vector


def weights_of(judge):
    return lambda losses: judge(losses.unsqueeze(1)).sigmoid().squeeze(1)


def weighted_loss(losses, judge):
    """``mean_i V_i(sg(l)) l_i`` with the judge's own parameters."""

    def loss(params, _):
        sample = losses(params)
        return (weights_of(judge)(sample.detach()) * sample).mean()

    return loss


@pytest.mark.parametrize("derivative", CASES)
def test_is_the_mixed_derivative_of_the_weighted_loss(derivative) -> None:
    alpha, tolerance = CASES[derivative]
    losses, judge, params, vector = program()
    theta = list(judge.parameters())
    expected = mixed_vector_product(weighted_loss(losses, judge), params, theta, vector)
    found = reweighting_product(
        losses, weights_of(judge), params, vector, theta, derivative=derivative, alpha=alpha
    )
    assert relative_error(found, expected) < tolerance
    assert [t.shape for t in found] == [t.shape for t in theta]


def test_single_precision_at_the_usual_length() -> None:
    losses, judge, params, vector = program(torch.float32)
    theta = list(judge.parameters())
    expected = mixed_vector_product(weighted_loss(losses, judge), params, theta, vector)
    for derivative in CASES:
        found = reweighting_product(
            losses, weights_of(judge), params, vector, theta, derivative=derivative
        )
        assert relative_error(found, expected) < 1e-2


def test_by_hand() -> None:
    """``l = (w, 3w)``, ``V = θ l``: ``∂/∂θ mean_i θ l_i sg(d_i) = (w + 9w) / 2`` for ``v = 1``."""

    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, losses):
            return self.theta * losses

    w = torch.tensor(0.5, dtype=torch.float64)
    for derivative in CASES:
        (found,) = reweighting_product(
            lambda p: torch.stack([p[0], 3 * p[0]]),
            Scale(),
            [w],
            [torch.ones_like(w)],
            derivative=derivative,
        )
        torch.testing.assert_close(found, torch.tensor(2.5).double(), rtol=1e-9, atol=0)


def test_leaves_its_arguments_as_they_are() -> None:
    losses, judge, params, vector = program()
    before = [p.detach().clone() for p in params]
    for derivative in CASES:
        reweighting_product(
            losses,
            weights_of(judge),
            params,
            vector,
            list(judge.parameters()),
            derivative=derivative,
        )
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert all(p.requires_grad and p.grad is None for p in (*params, *judge.parameters()))


def call(losses=lambda p: p[0] * 2, weights=None, **settings):
    w = torch.ones(3)
    return reweighting_product(losses, weights or torch.nn.Identity(), [w], [w], **settings)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: call(weights=lambda losses: losses),
            TypeError,
            r"weights is of type function, whose parameters are not known; give them as upper=",
        ),
        (
            lambda: call(upper=[torch.ones(2)]),
            ValueError,
            r"upper holds a tensor of shape \(2,\) at place 0 that requires no gradient",
        ),
        (
            lambda: call(losses=lambda p: p[0].sum()),
            ValueError,
            r"losses must return shape \(B,\) but returned \(\); return one number per sample",
        ),
        (
            lambda: call(weights=torch.nn.Linear(3, 2)),
            ValueError,
            r"weights must return shape \(3,\) but returned \(2,\)",
        ),
        (
            lambda: call(derivative="backward"),
            ValueError,
            "derivative='backward' is not known; choose from central_difference, one_sided",
        ),
        (
            lambda: call(alpha=0.0),
            ValueError,
            "reweighting_product: alpha=0.0 is the length of a displacement; give a positive",
        ),
        (
            lambda: call(losses=lambda p: torch.ones(3), derivative="forward_mode"),
            ValueError,
            "losses does not depend on the tensors it was given",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, kind, message) -> None:
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("derivative", CASES)
def test_entries_have_memory_of_their_own(derivative) -> None:
    """Autograd gives both summands one gradient, and all entries of a sum one number."""
    losses, _, params, vector = program()
    left, right = (torch.zeros(8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    total = torch.zeros(8, dtype=torch.float64, requires_grad=True)

    def weights(given):
        return given * (left + right + total.sum())

    found = reweighting_product(
        losses, weights, params, vector, [left, right, total], derivative=derivative
    )
    before = [t.clone() for t in found]
    for t in found:
        t.mul_(2.0)
    assert all(torch.equal(t, 2.0 * b) for t, b in zip(found, before, strict=True))


@pytest.mark.parametrize("derivative", CASES)
def test_a_vector_in_the_memory_of_parameters_is_read_before_they_move(derivative) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    params = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2)]
    theta = torch.ones(6, dtype=torch.float64, requires_grad=True)

    def losses(given):
        return ((x @ given[0]).tanh() * (x @ given[1])).square()

    def product(vector):
        (found,) = reweighting_product(
            losses, lambda given: theta * given, params, vector, [theta], derivative=derivative
        )
        return found

    swapped = params[::-1]
    copies = [t.clone() for t in swapped]
    assert torch.equal(product(swapped), product(copies))
