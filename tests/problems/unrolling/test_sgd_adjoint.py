"""The closed-form adjoint of SGD against torch's own steps and against the adjoint by autograd.

A step is linear, so that ``<(λ, ν), U(x + h) - U(x)> = <Uᵀ(λ, ν), h>`` holds for any displacement
``h`` up to rounding. Tolerance: relative 1e-12 in float64, since sums are of a few numbers near 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from metaweight.problems.hypergradients import unroll
from metaweight.problems.recording.recorded_steps import OptimizerMoment, optimizer_moment
from metaweight.problems.unrolling import adjoint
from metaweight.problems.unrolling import sgd_adjoint as sgd_adjoint_module
from metaweight.problems.unrolling.sgd_adjoint import BUFFER, Multiple, SgdAdjoint, sgd_adjoint
from support.each import for_each
from support.naive import relative_error
from support.unrolled import Lower, Setting, engine_gradient, lower_loss, naive_gradient
from torch import Tensor

from metaweight import ImplicitProblem

TOLERANCE = 1e-12
Direction = dict[Tensor, dict[str, Tensor]]


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def settings_of(case: tuple[Any, ...]) -> dict[str, Any]:
    momentum, dampening, nesterov, decay, maximize, as_tensor = case
    lr = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
    return {
        "lr": lr,
        "momentum": momentum,
        "dampening": dampening,
        "nesterov": nesterov,
        "weight_decay": decay,
        "maximize": maximize,
    }


def is_allowed(case: tuple[Any, ...]) -> bool:
    momentum, dampening, nesterov, *_ = case
    return not nesterov or (momentum > 0 and dampening == 0)


CASES = [
    settings_of(case)
    for case in itertools.product(
        (0.0, 0.9), (0.0, 0.3), (False, True), (0.0, 0.05), (False, True), (False, True)
    )
    if is_allowed(case)
]


class Program:
    """An optimizer over three groups, one of them of two parameters; the last has no gradient."""

    def __init__(self, settings: dict[str, Any], steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = [drawn(generator, *shape) for shape in ((3, 2), (4,), (2,), (3,))]
        a, b, c, d = self.parameters
        plain = {"momentum": 0.0, "nesterov": False, "dampening": 0.0, "weight_decay": 0.2}
        groups = [{"params": [a, b]}, {"params": [c], **plain}, {"params": [d]}]
        self.optimizer = torch.optim.SGD(groups, **settings)
        self.generator = generator
        for _ in range(steps):
            self.draw_gradients()
            self.optimizer.step()
        self.draw_gradients()
        self.start = [p.clone() for p in self.parameters]
        self.moment = optimizer_moment(self.optimizer)

    def draw_gradients(self) -> None:
        for p in self.parameters[:3]:
            p.grad = drawn(self.generator, *p.shape)

    def after(self, direction: Direction) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters and buffers after a step from where it began, displaced; torch takes it."""
        zero = torch.zeros((), dtype=torch.float64)
        for p, value in zip(self.parameters, self.start, strict=True):
            along = direction.get(p, {})
            p.copy_(value + along.get("w", zero))
            if p in self.moment.gradients:
                p.grad = self.moment.gradients[p] + along.get("g", zero)
            state = self.moment.states.get(p, {})
            buffer = state.get(BUFFER)
            self.optimizer.state[p].clear()
            if buffer is not None:
                self.optimizer.state[p][BUFFER] = buffer + along.get("b", zero)
        self.optimizer.step()
        state = [self.optimizer.state[p].get(BUFFER) for p in self.parameters]
        buffers = [
            torch.zeros_like(p) if b is None else b
            for b, p in zip(state, self.parameters, strict=True)
        ]
        return [p.clone() for p in self.parameters], [b.clone() for b in buffers]


def value(multiple: Multiple) -> Tensor:
    (vector,) = multiple.vector
    return multiple.factor * vector


def values(found: SgdAdjoint) -> tuple[dict[Tensor, Tensor], dict[Tensor, Tensor]]:
    """The cotangents of gradients, and of those buffers that have one."""
    buffers = {p: value(state[BUFFER]) for p, state in found.states.items() if BUFFER in state}
    return {p: found.factor * g for p, g in found.gradients.items()}, buffers


@for_each(itertools.product(CASES, (0, 2), (1.0, -0.5, 0.0)))
def test_is_the_transpose_of_torchs_step(setting: tuple[dict[str, Any], int, float]) -> None:
    """A negative number is what steps after this one leave; of the others the form is another."""
    *program_of, factor = setting
    program = Program(*program_of)
    generator = torch.Generator().manual_seed(1)
    of_w = {p: drawn(generator, *p.shape) for p in program.parameters}
    # A first step without momentum leaves no buffer to have a cotangent.
    left = [p for p, b in zip(program.parameters, program.after({})[1], strict=True) if b.any()]
    drawn_b = {p: drawn(generator, *p.shape) for p in left}
    of_b = {p: factor * b for p, b in drawn_b.items()}
    given = {p: {BUFFER: Multiple([b.clone()], factor)} for p, b in drawn_b.items()}
    adjoint = sgd_adjoint(program.moment, of_w, given, gradients_only=False)
    by_w, (by_g, by_b) = adjoint.parameters, values(adjoint)
    home = program.after({})
    for p in program.parameters:
        for part, found in (("w", by_w.get(p)), ("g", by_g.get(p)), ("b", by_b.get(p))):
            if found is None:
                continue
            h = drawn(generator, *p.shape)
            moved = program.after({p: {part: h}})
            expected = torch.zeros((), dtype=torch.float64)
            for number, q in enumerate(program.parameters):
                expected += (of_w[q] * (moved[0][number] - home[0][number])).sum()
                if q in of_b:
                    change = moved[1][number] - home[1][number]
                    expected += (of_b[q] * change).sum()
            # The difference of two steps is exact to rounding of numbers near 1.
            torch.testing.assert_close((found * h).sum(), expected, rtol=1e-11, atol=1e-13)


def test_every_part_has_its_cotangent() -> None:
    """What the transposition above went through."""
    program = Program(settings_of((0.9, 0.0, False, 0.05, False, False)), 2)
    a, b, c, d = program.parameters
    one = {p: torch.ones_like(p) for p in program.parameters}
    parameters, gradients, states, _ = sgd_adjoint(program.moment, one, {}, gradients_only=False)
    assert set(parameters) == {a, b, c, d}
    assert set(gradients) == {a, b, c}
    assert {p for p in states if BUFFER in states[p]} == {a, b}
    assert parameters[d] is one[d]


def test_what_is_kept_for_the_step_before_is_not_what_was_given() -> None:
    """The step before writes to it, and the cotangents given belong to the caller."""
    program = Program(settings_of((0.9, 0.0, False, 0.0, False, False)), 2)
    one = {p: torch.ones_like(p) for p in program.parameters}
    found = sgd_adjoint(program.moment, one, {}, gradients_only=False)
    kept = [state[BUFFER].vector[0] for state in found.states.values() if BUFFER in state]
    assert len(kept) == 2
    given = {t.untyped_storage().data_ptr() for t in one.values()}
    assert given.isdisjoint(t.untyped_storage().data_ptr() for t in kept)


def test_a_buffer_that_rests_passes_its_cotangent_on() -> None:
    """Momentum scheduled to 0 leaves the buffer for when it comes back."""
    program = Program(settings_of((0.9, 0.0, False, 0.0, False, False)), 2)
    for group in program.optimizer.param_groups:
        group["momentum"] = 0.0
    moment = optimizer_moment(program.optimizer)
    a = program.parameters[0]
    of_b = {a: {BUFFER: Multiple([torch.full_like(a, 4.0)], -0.5)}}
    found = sgd_adjoint(moment, {a: torch.ones_like(a)}, of_b, gradients_only=False)
    assert torch.equal(value(found.states[a][BUFFER]), torch.full_like(a, -2.0))


@for_each(itertools.product(CASES, (0, 2), (1, 3)))
def test_gradients_alone_are_the_same(given: tuple[dict[str, Any], int, int]) -> None:
    settings, steps, groups = given
    program = Program(settings, steps)
    chosen = program.parameters[: 2 if groups == 1 else None]
    one = {p: torch.ones_like(p) for p in chosen}
    everything = sgd_adjoint(program.moment, one, {}, gradients_only=False)
    alone = sgd_adjoint(program.moment, one, {}, gradients_only=True)
    assert set(alone.gradients) == set(everything.gradients)
    for p, g in values(everything)[0].items():
        torch.testing.assert_close(
            alone.factor * alone.gradients[p], g, rtol=TOLERANCE, atol=TOLERANCE
        )


@for_each(itertools.product(CASES, (0, 2), (False, True)))
def test_settings_may_stay_on_their_device(given: tuple[dict[str, Any], int, bool]) -> None:
    """Where reading a number would wait for a device, it remains a tensor."""
    settings, steps, only = given
    program = Program(settings, steps)
    generator = torch.Generator().manual_seed(1)
    of_w = {p: drawn(generator, *p.shape) for p in program.parameters}
    of_b = {p: drawn(generator, *p.shape) for p in program.parameters[:2]}

    def adjoint_of() -> list[Tensor]:
        given = {p: {BUFFER: Multiple([b.clone()], -0.5)} for p, b in of_b.items()}
        found = sgd_adjoint(program.moment, of_w, given, gradients_only=only)
        gradients, buffers = values(found)
        # Of gradients alone, the state is not read.
        states = [] if only else buffers.values()
        return [*found.parameters.values(), *gradients.values(), *states]

    expected = adjoint_of()

    def number(setting: Any, dtype: torch.dtype) -> Any:
        del dtype
        # A momentum of zero is another program, which torch itself reads on the host.
        return torch.as_tensor(setting, dtype=torch.float64) if setting else 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgd_adjoint_module, "_number", number)
        found = adjoint_of()
    for actual, other in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, other, rtol=TOLERANCE, atol=TOLERANCE)


def test_does_not_read_gradients_and_states() -> None:
    program = Program(settings_of((0.9, 0.3, False, 0.05, False, False)), 2)
    shapes = optimizer_moment(program.optimizer, values=False)
    one = {p: torch.ones_like(p) for p in program.parameters}

    def gradients(moment: OptimizerMoment) -> dict[Tensor, Tensor]:
        return values(sgd_adjoint(moment, one, {}, gradients_only=False))[0]

    expected = gradients(program.moment)
    assert all(torch.equal(expected[p], g) for p, g in gradients(shapes).items())


def in_groups(parameters: Any, **settings: Any) -> torch.optim.SGD:
    first, *others = list(parameters)
    plain = {"params": others[:1], "lr": 0.3, "momentum": 0.0, "nesterov": False}
    return torch.optim.SGD([{"params": [first]}, plain, {"params": others[1:]}], **settings)


class Fixed(Lower):
    """Its settings are nobody's to learn."""

    learned_settings = ImplicitProblem.learned_settings


class Idle(Fixed):
    """One of its parameters does not enter its loss."""

    def training_step(self, batch):
        weights = list(self.module.parameters())

        def predict(inputs: Tensor) -> Tensor:
            hidden = (inputs @ weights[0].T).tanh()
            return hidden @ weights[2].T + weights[3]

        kept = [weights[0], torch.zeros_like(weights[1]), *weights[2:]]
        return lower_loss(predict, kept, self.upper.module, batch)


class Resting(Fixed):
    """Every other step is one without momentum, and leaves the buffer alone."""

    def get_batch(self):
        self.optimizer.param_groups[0]["momentum"] = 0.9 * (self.count % 2)
        return super().get_batch()


class Scheduled(Fixed):
    """Rates go to zero, and beyond it, and come back."""

    def get_batch(self):
        rates = (0.1, 0.0, 0.2, -0.05, 0.3, 0.05)
        self.optimizer.param_groups[0]["lr"] = rates[self.count % len(rates)]
        return super().get_batch()


MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
# Not among what the naive program is written for.
OTHERS = ("maximize", "groups")
PROGRAMS: dict[str, tuple[Setting, dict[str, Any]]] = {
    "plain": (Setting(settings={"lr": 0.1}), {}),
    "momentum": (Setting(settings=MOMENTUM), {}),
    "momentum, from the first step": (Setting(settings=MOMENTUM, earlier=0), {}),
    "nesterov, from the first step": (
        Setting(settings={**MOMENTUM, "nesterov": True}, earlier=0),
        {},
    ),
    "dampening": (Setting(settings={**MOMENTUM, "dampening": 0.4}, earlier=0), {}),
    "maximize": (Setting(settings={**MOMENTUM, "maximize": True}), {}),
    "a rate that is a tensor": (Setting(settings={**MOMENTUM, "lr": torch.tensor(0.1)}), {}),
    "groups": (Setting(in_groups, MOMENTUM), {}),  # type: ignore[arg-type]
    "scheduled, accumulated": (Setting(settings=MOMENTUM, scheduler=True, accumulation=2), {}),
    "without a gradient": (Setting(settings=MOMENTUM), {"lower": Idle}),
    "momentum that rests": (Setting(settings=MOMENTUM), {"lower": Resting}),
    "rates of any sign": (Setting(settings=MOMENTUM), {"lower": Scheduled}),
    "rates of any sign, nesterov": (
        Setting(settings={**MOMENTUM, "nesterov": True}),
        {"lower": Scheduled},
    ),
    "a part": (Setting(settings=MOMENTUM), {"hypergradient_parameters": ("2",)}),
}


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize(
    "case", [case for case, (_, more) in PROGRAMS.items() if case not in OTHERS and not more]
)
def test_equals_the_naive_program(case: str, steps: int) -> None:
    """One graph through all steps, in double precision; only rounding differs."""
    setting = Setting(**{**vars(PROGRAMS[case][0]), "steps": steps})
    found = engine_gradient(setting, unroll.Unroll(), lower=Fixed)
    assert relative_error(found, naive_gradient(setting)) < 1e-9


class Counted:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


@pytest.mark.parametrize("steps", [1, 3, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", PROGRAMS)
def test_equals_the_adjoint_by_autograd(
    case: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, more = PROGRAMS[case]
    setting = Setting(**{**vars(setting), "steps": steps})
    more = {"lower": Fixed, **more}
    by_autograd = Counted(adjoint._by_autograd)
    monkeypatch.setattr(adjoint, "_by_autograd", by_autograd)
    closed = engine_gradient(setting, unroll.Unroll(), **more)
    assert by_autograd.calls == 0
    for module in (adjoint, unroll):
        monkeypatch.setattr(module, "reads_values", lambda problem: True)
    general = engine_gradient(setting, unroll.Unroll(), **more)
    assert by_autograd.calls == steps * (setting.earlier + 1)
    assert sum(float(t.norm()) for t in general) > 1e-6
    assert relative_error(closed, general) < TOLERANCE
