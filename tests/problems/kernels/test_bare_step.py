"""A step of an optimizer without what is around it: the same numbers, and nothing left out that
somebody asked for."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from metaweight.problems.kernels import bare_step
from metaweight.problems.kernels.bare_step import take_step
from torch.optim.optimizer import register_optimizer_step_post_hook

KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD, foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


def parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=draw)) for size in ((3,), (2, 2))]


def give_gradients(given: list[torch.nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in given:
        p.grad = torch.randn(p.shape, generator=draw)


def sgd(**settings: Any) -> tuple[torch.nn.Parameter, torch.optim.SGD]:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    return p, torch.optim.SGD([p], lr=0.5, **settings)


def is_bare(optimizer: torch.optim.Optimizer) -> bool:
    return bare_step._own_code(optimizer) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_torchs_to_the_bit(kind: str) -> None:
    bare, whole = parameters(), parameters()
    ours, theirs = KINDS[kind](bare), KINDS[kind](whole)
    # What torch decorates otherwise takes its own way.
    assert is_bare(ours) is (kind != "Adafactor")
    for seed in range(4):
        for given in (bare, whole):
            give_gradients(given, seed)
        take_step(ours)
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(bare, whole, strict=True))
    for left, right in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(torch.as_tensor(left[k]), torch.as_tensor(right[k])) for k in left)


def test_gradients_are_recorded_again_afterwards_also_after_an_error() -> None:
    p, optimizer = sgd()
    take_step(optimizer)
    assert torch.is_grad_enabled()
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError):
        take_step(optimizer)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        optimizer.param_groups[0]["lr"] = 0.5
        take_step(optimizer)
        assert not torch.is_grad_enabled()
    assert p.tolist() == [0.0, 0.0]


def test_hooks_of_the_optimizer_and_of_all_are_called() -> None:
    _, optimizer = sgd()
    seen: list[str] = []
    hooks: list[Callable[[], Any]] = [
        lambda: optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        lambda: optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        lambda: register_optimizer_step_post_hook(lambda *_: seen.append("of all")),
    ]
    for register in hooks:
        handle = register()
        take_step(optimizer)
        handle.remove()
        assert is_bare(optimizer)
        take_step(optimizer)
    assert seen == ["before", "after", "of all"]


def test_a_profiler_sees_the_range_of_the_step() -> None:
    _, optimizer = sgd()
    with torch.autograd.profiler.profile() as profile:
        take_step(optimizer)
    assert any(event.name == "Optimizer.step#SGD.step" for event in profile.function_events)


def test_schedulers_are_told_of_the_step() -> None:
    """Otherwise torch warns of an order of steps that is not the case, and a warning is an error
    here."""
    p, optimizer = sgd()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert is_bare(optimizer)
    take_step(optimizer)
    scheduler.step()
    assert p.tolist() == [0.5, 0.5]
    assert optimizer.param_groups[0]["lr"] == 0.25


def counted(step: Any, seen: list[int]) -> Any:
    @functools.wraps(step)
    def instead(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return step(*args, **kwargs)

    return instead


@pytest.mark.parametrize("scheduled", [False, True], ids=["alone", "over a scheduler's"])
def test_what_stands_in_the_place_of_an_optimizers_step_is_called(scheduled: bool) -> None:
    p, optimizer = sgd()
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    seen: list[int] = []
    optimizer.step = counted(optimizer.step, seen)  # type: ignore[method-assign]
    take_step(optimizer)
    assert seen == [1]
    assert p.tolist() == [0.5, 0.5]


def test_what_stands_in_the_place_of_a_class_step_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p, optimizer = sgd()
    seen: list[int] = []
    monkeypatch.setattr(torch.optim.SGD, "step", counted(torch.optim.SGD.step, seen))
    take_step(optimizer)
    assert seen == [1]
    assert p.tolist() == [0.5, 0.5]


def test_a_step_of_ones_own_is_called_and_inherited_code_keeps_its_parts() -> None:
    seen: list[str] = []

    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append("step")
            return super().step(closure)

    class Part(torch.optim.SGD):
        def _init_group(self, *args: Any) -> Any:
            seen.append("part")
            return super()._init_group(*args)

    for kind in (Own, Part):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        take_step(kind([p], lr=0.5))
        assert p.tolist() == [0.5, 0.5]
    assert seen == ["step", "part"]


def test_a_decorated_step_keeps_its_decorator() -> None:
    seen: list[int] = []

    class Decorated(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"differentiable": False})

        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                self.param_groups[0]["params"][0].sub_(0.5)

        step = counted(step, seen)

    p = torch.nn.Parameter(torch.ones(2))
    take_step(Decorated([p]))
    assert seen == [1]
    assert p.tolist() == [0.5, 0.5]


def test_a_differentiable_step_keeps_its_graph() -> None:
    p = torch.ones(2, requires_grad=True)
    w = p * 1.0
    optimizer = torch.optim.SGD([w.detach().requires_grad_()], lr=0.5, differentiable=True)
    assert not is_bare(optimizer)


def test_copies_step_as_the_first_does() -> None:
    p, optimizer = sgd(momentum=0.5)
    take_step(optimizer)
    again = copy.deepcopy(optimizer)
    assert is_bare(again)
    (q,) = again.param_groups[0]["params"]
    q.grad = p.grad
    take_step(again)
    take_step(optimizer)
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["_set_grad", "_profiler_is_on"])
def test_a_torch_without_private_names_takes_whole_steps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, optimizer = sgd()
    monkeypatch.setattr(bare_step, name, None)
    take_step(optimizer)
    assert p.tolist() == [0.5, 0.5]
    assert torch.is_grad_enabled()


class Door:
    """An optimizer that hands everything on to another one."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Disguised(torch.optim.SGD):
    """The same, of torch's class."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["inner"], name)


class Owner:
    """Its step is its own, not its class's."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.step = inner.step


@pytest.mark.parametrize("kind", [Door, Disguised, Owner])
def test_what_hands_its_steps_on_does(kind: Any) -> None:
    p, inner = sgd()
    seen: list[int] = []
    inner.register_step_post_hook(lambda *_: seen.append(1))
    take_step(kind(inner))
    assert p.tolist() == [0.5, 0.5]
    # Torch calls the hooks that it finds on the inner one.
    assert seen == [1]


def test_what_is_told_of_each_step_is_told() -> None:
    seen: list[int] = []

    class Told(torch.optim.SGD):
        def _optimizer_step_code(self) -> None:
            seen.append(1)

    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    take_step(Told([p], lr=0.5))
    assert seen == [1]
    assert p.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.optim.Optimizer, "profile_hook_step"),
        (bare_step._torch_optimizer, "_use_grad_for_differentiable"),
    ],
)
def test_a_torch_that_wraps_steps_otherwise_takes_whole_steps(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, optimizer = sgd()
    monkeypatch.delattr(owner, name)
    bare_step._inside.cache_clear()
    try:
        assert not is_bare(optimizer)
        take_step(optimizer)
    finally:
        bare_step._inside.cache_clear()
    assert p.tolist() == [0.5, 0.5]
