"""Hessian- and mixed-vector products, each against another way of computing them.

A network of two layers is no quadratic and has a full Hessian. Tolerances are rounding: 1e-12 in
float64 and 1e-5 in float32, relative to numbers near 1; a finite difference adds its alpha².
"""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from support.naive import relative_error

from metaweight.products import hessian_vector_product, mixed_vector_product

METHODS = ("exact", "forward_over_reverse", "finite_difference")
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}


def case(dtype=torch.float64):
    """Parameters of two layers, two upper parameters, and a vector along the first."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, y = drawn(6, 3), drawn(6)

    def loss(params, upper=None):
        first, second = params
        decay, scale = (drawn_decay, drawn_scale) if upper is None else upper
        error = torch.tanh(x @ first) @ second - y
        return (scale * error**2).mean() + (decay.exp() * first**2).sum()

    drawn_decay, drawn_scale = drawn(3, 4), drawn(6)
    params, vector = [drawn(3, 4), drawn(4)], [drawn(3, 4), drawn(4)]
    return loss, params, [drawn_decay, drawn_scale], vector


def tolerance(dtype, method, alpha):
    """A central difference of length alpha has an error of its square and of rounding over it."""
    if method != "finite_difference":
        return DTYPES[dtype]
    return 10 * alpha**2 + 10 * torch.finfo(dtype).eps / alpha


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_hessian_product_is_torch_funcs(dtype, method) -> None:
    """``jvp`` of ``grad``, forward over reverse on functions of a tuple."""
    loss, params, _, vector = case(dtype)
    alpha = 1e-4 if dtype == torch.float64 else 1e-2
    _, expected = torch.func.jvp(torch.func.grad(loss), (params,), (vector,))
    found = hessian_vector_product(loss, params, vector, method=method, alpha=alpha)
    assert relative_error(found, expected) < tolerance(dtype, method, alpha)
    assert [(t.shape, t.dtype, t.requires_grad) for t in found] == [
        (p.shape, dtype, False) for p in params
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mixed_product_is_the_gradient_of_a_directional_derivative(dtype, method) -> None:
    """``∇_θ`` of the ``jvp`` of the loss along ``v``, the other order of differentiation."""
    loss, params, upper, vector = case(dtype)
    alpha = 1e-4 if dtype == torch.float64 else 1e-2

    def along(above):
        return torch.func.jvp(lambda p: loss(p, above), (params,), (vector,))[1]

    expected = torch.func.grad(along)(upper)
    found = mixed_vector_product(loss, params, upper, vector, method=method, alpha=alpha)
    assert relative_error(found, expected) < tolerance(dtype, method, alpha)
    assert [t.shape for t in found] == [t.shape for t in upper]


@pytest.mark.parametrize("method", METHODS)
def test_a_quadratic_has_a_closed_form(method) -> None:
    """``L = ½ wᵀAw + wᵀBθ``: the products are ``Av`` and ``Bᵀv``; a difference is exact."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    a = a + a.T
    w, v = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    theta = torch.randn(2, generator=generator, dtype=torch.float64)

    def loss(params, upper):
        return 0.5 * params[0] @ a @ params[0] + params[0] @ b @ upper[0]

    (hessian,) = hessian_vector_product(lambda p: loss(p, [theta]), [w], [v], method=method)
    (mixed,) = mixed_vector_product(loss, [w], [theta], [v], method=method)
    torch.testing.assert_close(hessian, a @ v, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixed, b.T @ v, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_products_leave_their_arguments_as_they_are(method) -> None:
    loss, params, upper, vector = case()
    everything = [*params, *upper, *vector]
    before = [t.clone() for t in everything]
    hessian_vector_product(loss, params, vector, method=method)
    mixed_vector_product(loss, params, upper, vector, method=method)
    assert all(torch.equal(t, b) for t, b in zip(everything, before, strict=True))
    assert not any(t.requires_grad for t in everything)
    assert all(t.grad is None for t in everything)


def test_a_vector_in_the_memory_of_parameters_is_read_before_they_move() -> None:
    """Of a quadratic, a difference is exact to rounding over the displacement of 0.01."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    params = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2)]

    def loss(given):
        return (matrix @ torch.cat(given)).square().sum() / 2

    vector = params[::-1]
    expected = matrix.T @ matrix @ torch.cat(vector)
    found = hessian_vector_product(loss, params, vector, method="finite_difference")
    assert torch.allclose(torch.cat(found), expected, rtol=1e-10)


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_a_modules_own_loss_may_ignore_its_arguments(method) -> None:
    module, weights = torch.nn.Linear(3, 1).double(), torch.nn.Linear(1, 1).double()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    params, upper = list(module.parameters()), list(weights.parameters())
    vector = [torch.ones_like(p) for p in params]

    def loss(*_):
        losses = module(x) ** 2
        return (weights(losses.detach()) * losses).mean()

    def functional(params, upper):
        losses = (x @ params[0].T + params[1]) ** 2
        return ((losses.detach() @ upper[0].T + upper[1]) * losses).mean()

    expected = mixed_vector_product(functional, params, upper, vector, method=method)
    found = mixed_vector_product(loss, params, upper, vector, method=method)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_products_under_no_grad_and_of_what_the_loss_does_not_see() -> None:
    loss, params, upper, vector = case()
    other = torch.ones(2, dtype=torch.float64)
    with torch.no_grad():
        found = mixed_vector_product(lambda p, u: loss(p, u[:2]), params, [*upper, other], vector)
    assert torch.equal(found[2], torch.zeros_like(other))
    assert all(t.any() for t in found[:2])
    constant = hessian_vector_product(lambda p: torch.ones(()), params, vector)
    assert not any(t.any() for t in constant)


ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: hessian_vector_product(lambda p: p[0].sum(), ONE, [ONE]),
            TypeError,
            r"hessian_vector_product: params must be a list of tensors but is of type Tensor; give "
            r"\[params\] for a single tensor",
        ),
        (
            lambda: hessian_vector_product(lambda p: p[0].sum(), [ONE], [torch.ones(3)]),
            ValueError,
            r"v must have the shapes of params, \[\(2,\)\], but has \[\(3,\)\]; give one tensor",
        ),
        (
            lambda: hessian_vector_product(lambda p: p[0], [ONE], [ONE]),
            ValueError,
            r"loss must return one number but returned shape \(2,\); reduce it",
        ),
        (
            lambda: hessian_vector_product(lambda p: 1.0, [ONE], [ONE]),
            TypeError,
            r"loss must return a 0-dim tensor but returned type float; return the loss itself",
        ),
        (
            lambda: hessian_vector_product(lambda p: p[0].sum(), [], []),
            ValueError,
            "params is empty; give the tensors to differentiate by",
        ),
        (
            lambda: hessian_vector_product(lambda p: p[0].sum(), [torch.ones(2).long()], [ONE]),
            TypeError,
            r"params holds a tensor of torch.int64 at place 0.*give floating-point tensors",
        ),
        (
            lambda: mixed_vector_product(lambda p, u: p[0].sum(), [ONE], ["theta"], [ONE]),
            TypeError,
            r"mixed_vector_product: upper must .* but holds an entry of type str at place 0",
        ),
        (
            lambda: mixed_vector_product(
                lambda p, u: p[0].sum(), [ONE], [ONE], [ONE], method="backwards"
            ),
            ValueError,
            "method='backwards' is not known; choose from exact, forward_over_reverse, finite_diff",
        ),
        (
            lambda: hessian_vector_product(lambda p: p[0].sum(), [ONE], [ONE], alpha=-1.0),
            ValueError,
            "hessian_vector_product: alpha=-1.0 is the length of a displacement; give a positive",
        ),
        (
            lambda: hessian_vector_product(
                lambda p: ONE.sum(), [ONE], [ONE], method="forward_over_reverse"
            ),
            ValueError,
            "loss does not depend on the tensors it was given.*functional_call",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, kind, message) -> None:
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(
    "name",
    [
        "products.hessian_vector_product",
        "products.mixed_vector_product",
        "products.reweighting_product",
        "unrolling.unrolled_vjp",
    ],
)
def test_examples_in_the_documentation_run(name: str) -> None:
    module = importlib.import_module(f"metaweight.problems.{name}")
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted and not found.failed
