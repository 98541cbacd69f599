"""Products through unrolled steps against one graph of all steps, in float64."""

from __future__ import annotations

import random

import pytest
import torch
from support.naive import relative_error

from metaweight.products import unrolled_vjp

BETA = 0.9


def descent(dtype=torch.float64):
    """Momentum on a network's loss, learning rate and weight decays being upper parameters."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, y = drawn(6, 3), drawn(6)
    rate = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    decay = drawn(3, 4).mul_(0.1).requires_grad_()

    def loss(first, second):
        return ((torch.tanh(x @ first) @ second - y) ** 2).mean() + (decay * first**2).sum()

    def step(state):
        weights, buffers = state[:2], state[2:]
        weights = [w if w.requires_grad else w.detach().requires_grad_() for w in weights]
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(*weights), weights, create_graph=True)
        moved = [BETA * b + g for b, g in zip(buffers, gradient, strict=True)]
        return [*(w - rate * b for w, b in zip(weights, moved, strict=True)), *moved]

    state = [drawn(3, 4), drawn(4), torch.zeros(3, 4, dtype=dtype), torch.zeros(4, dtype=dtype)]
    vector = [torch.randn(t.shape, generator=generator, dtype=dtype) for t in state]
    return step, state, vector, [rate, decay]


def one_graph(step, state, vector, upper, steps):
    """The same by one backward pass through all steps."""
    at = [t.clone().requires_grad_() for t in state]
    after = list(at)
    for _ in range(steps):
        after = step(after)
    found = torch.autograd.grad(after, [*at, *upper], vector)
    return list(found[: len(at)]), list(found[len(at) :])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_is_the_product_through_one_graph(steps, dtype) -> None:
    step, state, vector, upper = descent(dtype)
    of_state, of_upper = one_graph(step, state, vector, upper, steps)
    found = unrolled_vjp([step] * steps, state, vector, upper)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert relative_error(found.state, of_state) < tolerance
    assert relative_error(found.upper, of_upper) < tolerance
    if steps == 1:
        alone = unrolled_vjp(step, state, vector, upper)
        assert all(torch.equal(a, b) for a, b in zip(alone.upper, found.upper, strict=True))


def test_a_linear_step_has_a_closed_form() -> None:
    """``w_T = (1 - θ)^T w``: the derivatives are ``(1 - θ)^T`` and ``-T (1 - θ)^{T-1} w``."""
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([2.0, -1.0], dtype=torch.float64)
    v = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = unrolled_vjp([lambda s: [s[0] - theta * s[0]]] * 4, [w], [v], [theta])
    torch.testing.assert_close(found.state[0], 0.7**4 * v)
    torch.testing.assert_close(found.upper[0], -4 * 0.7**3 * (w @ v))


def test_one_steps_graph_is_held_at_a_time() -> None:
    """Tensors that backward passes hold on to, counted as they come and go.

    No operation here saves its own output, which with these hooks would hold itself.
    """
    held, most = 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal held, most
            held += 1
            most = max(most, held)
            self.tensor = tensor

        def __del__(self):
            nonlocal held
            held -= 1

    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    w = torch.linspace(0, 1, 5, dtype=torch.float64)
    peaks = []
    for steps in (1, 2, 20):
        most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda h: h.tensor):
            unrolled_vjp([lambda s: [s[0] - rate * s[0] ** 3]] * steps, [w], [w], [rate])
        peaks.append(most)
    assert peaks[0] == peaks[1] == peaks[2] > 0


def test_random_numbers_are_those_of_the_first_pass() -> None:
    """Streams of torch and Python; they go on as if the steps had been taken once."""
    noise = torch.ones((), dtype=torch.float64, requires_grad=True)

    def step(state):
        drawn = torch.randn(3, dtype=torch.float64) * (1 + random.random())
        return [state[0] * (1 + 0.1 * noise * drawn)]

    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    v = torch.ones_like(w)
    torch.default_generator.manual_seed(3), random.seed(3)
    expected = one_graph(step, [w], [v], [noise], 3)
    after = float(torch.rand(())), random.random()
    torch.default_generator.manual_seed(3), random.seed(3)
    found = unrolled_vjp([step] * 3, [w], [v], [noise])
    assert (float(torch.rand(())), random.random()) == after
    assert relative_error(found.state, expected[0]) < 1e-12
    assert relative_error(found.upper, expected[1]) < 1e-12


def test_whole_numbers_of_a_state_are_constants() -> None:
    rate = torch.tensor(0.1, requires_grad=True)

    def step(state):
        count, w = state
        return [count + 1, w - rate / (count + 1) * w]

    found = unrolled_vjp(
        [step] * 2,
        [torch.tensor(0), torch.tensor(1.0)],
        [torch.tensor(0), torch.tensor(1.0)],
        [rate],
    )
    # w₂ = (1 - θ)(1 - θ/2), whose derivative at 0.1 is -3/2 + θ.
    torch.testing.assert_close(found.upper[0], torch.tensor(-1.4))
    torch.testing.assert_close(found.state[1], torch.tensor(0.9 * 0.95))


W = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: unrolled_vjp(lambda s: s, W, [W]),
            TypeError,
            r"unrolled_vjp: state must be a list of tensors but is of type Tensor",
        ),
        (
            lambda: unrolled_vjp(lambda s: s, [W], [W, W]),
            ValueError,
            r"v must have the shapes of state, \[\(2,\)\], but has \[\(2,\), \(2,\)\]",
        ),
        (
            lambda: unrolled_vjp(lambda s: s, [W], [W], [W]),
            ValueError,
            r"upper holds a tensor of shape \(2,\) at place 0 that requires no gradient",
        ),
        (
            lambda: unrolled_vjp(lambda s: s[0], [W], [W]),
            TypeError,
            "what step returned must be a list of tensors but is of type Tensor",
        ),
        (
            lambda: unrolled_vjp(lambda s: [s[0].sum()], [W], [W]),
            ValueError,
            r"step received a state of shapes \[\(2,\)\] and returned \[\(\)\]; return the next",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, kind, message) -> None:
    with pytest.raises(kind, match=message):
        call()
