"""Backward passes without the work around them are those of ``torch.autograd``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems.base import backward
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from metaweight.problems.products.evaluation import Evaluation
from metaweight.problems.products.second_derivatives import double_backward
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode


def network() -> tuple[nn.Module, Tensor]:
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    net.register_parameter("unused", nn.Parameter(unused))
    return net, torch.randn(7, 3, dtype=torch.float64)


@pytest.mark.parametrize("run", [backward._run, None])
def test_gradients_are_those_of_autograd(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: it is the same pass; without torch's private call, by torch's own functions."""
    assert backward._run is not None
    monkeypatch.setattr(backward, "_run", run)
    net, inputs = network()
    parameters = list(net.parameters())
    expected = torch.autograd.grad(net(inputs).square().mean(), parameters, allow_unused=True)
    found = backward.gradients(net(inputs).square().mean(), parameters)
    assert expected[0] is None and found[0] is None
    for theirs, ours in zip(expected[1:], found[1:], strict=True):
        assert torch.equal(theirs, ours)
    for _ in range(2):
        backward.accumulate(net(inputs).square().mean(), parameters[1:3])
    for parameter, theirs in zip(parameters[1:3], expected[1:3], strict=True):
        assert torch.equal(parameter.grad, theirs + theirs)
    assert all(p.grad is None for p in (parameters[0], *parameters[3:]))


def test_hooks_are_called_as_by_autograd() -> None:
    w = torch.ones(3, requires_grad=True)
    w.register_hook(lambda gradient: 2 * gradient)
    assert torch.equal(backward.gradients((3 * w).sum(), [w])[0], torch.full((3,), 6.0))


def test_a_loss_that_is_a_parameter_shares_no_memory_between_passes() -> None:
    w = torch.tensor(2.0, requires_grad=True)
    (first,) = backward.gradients(w, [w])
    first.mul_(5)
    (second,) = backward.gradients(w, [w])
    assert float(second) == 1.0


def test_overrides_of_torch_functions_see_the_pass() -> None:
    class Seeing(TorchFunctionMode):
        seen = False

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen |= func is torch.autograd.grad
            return func(*args, **(kwargs or {}))

    w = torch.ones(3, requires_grad=True)
    loss = w.square().sum()
    with Seeing() as mode:
        (found,) = backward.gradients(loss, [w])
    assert mode.seen
    assert torch.equal(found, torch.full((3,), 2.0))


@pytest.mark.parametrize("run", [backward._run, None])
def test_second_derivatives_are_those_of_autograd(
    run: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "_run", run)
    net, inputs = network()
    parameters = list(net.parameters())
    along = [torch.full_like(p, 0.5) for p in parameters[1:]]

    def first() -> list[Tensor | None]:
        loss = net(inputs).square().mean()
        return list(torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True))

    expected = torch.autograd.grad(first()[1:], parameters, along, allow_unused=True)
    found = backward.gradients_with_graph(net(inputs).square().mean(), parameters)
    assert found[0] is None
    for ours, theirs in zip(found[1:], first()[1:], strict=True):
        assert torch.equal(ours, theirs)
    for keep in (True, False):
        products = backward.products(found[1:], along, parameters, keep=keep)
        assert products[0] is None and expected[0] is None
        for ours, theirs in zip(products[1:], expected[1:], strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        backward.products(found[1:], along, parameters)


def test_vectors_of_another_kind_are_refused_as_by_autograd() -> None:
    w = torch.ones(3, requires_grad=True)
    for along in (torch.ones(1), torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(RuntimeError) as theirs:
            torch.autograd.grad([w.square()], [w], [along])
        with pytest.raises(RuntimeError) as ours:
            backward.products([w.square()], [along], [w])
        assert str(ours.value) == str(theirs.value)
    (found,) = backward.products([w.square()], [torch.ones(3, dtype=torch.float64)], [w])
    assert found.dtype is torch.float32


class Told(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_modes_of_others_see_passes_inside_of_ours() -> None:
    w = torch.ones(3, requires_grad=True)
    for modes in ((Told, differentiable_twice), (differentiable_twice, Told)):
        made = [mode() for mode in modes]
        with made[0], made[1]:
            (first,) = backward.gradients_with_graph(w.pow(3).sum(), [w])
            (second,) = backward.products([first], [torch.ones(3)], [w])
        told = next(mode for mode in made if isinstance(mode, Told))
        assert told.names.count("grad") == 2
        assert torch.equal(second, torch.full((3,), 6.0))


def test_ours_leaves_passes_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.ones(3, requires_grad=True)
    monkeypatch.setattr(torch.autograd, "grad", None)
    with differentiable_twice():
        (first,) = backward.gradients_with_graph(w.pow(3).sum(), [w])
        (second,) = backward.products([first], [torch.ones(3)], [w])
    assert torch.equal(second, torch.full((3,), 6.0))


def test_a_class_of_tensors_sees_the_pass_inside_of_ours() -> None:
    seen: list[object] = []

    class Own(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    w = torch.ones(3).as_subclass(Own).requires_grad_()
    with differentiable_twice():
        (found,) = backward.gradients_with_graph(w.square().sum(), [w])
    assert torch.autograd.grad in seen
    assert torch.equal(found.as_subclass(Tensor), torch.full((3,), 2.0))


class Bounded(torch.autograd.Function):
    """A convolution that is computed again in its backward pass, with a bounded gradient."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        with torch.enable_grad():
            y = F.conv2d(x, w)
            of_x, of_w = torch.autograd.grad(y, (x, w), g, create_graph=True)
        return of_x, of_w / (1 + of_w.norm())


def test_functions_of_users_compute_by_torch_in_their_backward_pass() -> None:
    """Ours would fill in zeros for gradients by weights that nobody reads, as this one does."""
    generator = torch.Generator().manual_seed(0)
    x, start, u = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 2, 4, 4), (3, 2, 2, 2), (3, 2, 2, 2))
    )
    x.requires_grad_()
    w, a = nn.Parameter(start), torch.ones((), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        return (a * Bounded.apply(x, w) ** 2).mean()

    first = torch.autograd.grad(loss(), [w], create_graph=True)
    expected = torch.autograd.grad(first, [w, a], [u])
    with Evaluation([w], device=torch.device("cpu"), second_order=True) as evaluation:
        found = double_backward(evaluation.gradient_graph(loss()), [u], [w, a])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_mode_is_put_back_after_a_pass_that_fails() -> None:
    w = torch.ones(3, requires_grad=True)
    (first,) = backward.gradients_with_graph(w.pow(3).sum(), [w])
    backward.products([first], [torch.ones(3)], [w])
    with differentiable_twice() as mode:
        with pytest.raises(RuntimeError, match="second time"):
            backward.products([first], [torch.ones(3)], [w])
        assert torch._C._get_function_stack_at(0) is mode


def test_a_complex_loss_is_refused_as_by_autograd() -> None:
    w = torch.ones((), dtype=torch.complex64, requires_grad=True)
    for call in (backward.gradients, backward.gradients_with_graph, backward.accumulate):
        with pytest.raises(RuntimeError, match="only for real scalar outputs"):
            call(2 * w, [w])


class Doubled(torch.autograd.Function):
    """Its node, and that of its derivative, belong to Python."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return Doubled.apply(g)


@pytest.mark.parametrize("run", [backward._run, None])
@pytest.mark.parametrize("edges", [True, False])
def test_a_product_starts_at_a_place_in_the_graph(
    run: object, edges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Σ <u, ∇(4 a w³)> = 12 u a w²``, with none of the gradient's values in memory."""
    monkeypatch.setattr(backward, "_run", run)
    monkeypatch.setattr(backward, "_takes_edges", edges)
    w, a = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([2.0, 1.0], 3.0))
    given = backward.gradients_with_graph(Doubled.apply(Doubled.apply(a * w**3)).sum(), [w])
    values = StorageWeakRef(given[0].untyped_storage())
    roots = [backward.root_of(g) for g in given]
    del given
    assert values.expired() == edges
    u = torch.tensor([1.0, 10.0], dtype=torch.float64)
    by_w, by_a = backward.products(roots, [u], [w, a])
    assert by_w.tolist() == [24 * 3 * 2, 24 * 3 * 10]
    assert by_a.item() == 12 * (4 + 10)
