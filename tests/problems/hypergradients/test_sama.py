"""SAMA's preconditioners against naive autograd through the optimizer step, in float64.

The naive optimizers are written out per parameter from their papers. Both sides are exact, so
relative 1e-9 is rounding alone, divided by small second moments; torch keeps NAdam's product of
momenta in single precision, hence 1e-6 there.
"""

from __future__ import annotations

import pytest
import torch
from metaweight.engines.hooks.base import HookList
from metaweight.problems import lower_view
from metaweight.problems.hypergradients.resolve import resolve
from metaweight.problems.hypergradients.sama import (
    adam_jacobian,
    adam_preconditioned,
    exact_preconditioned,
    step_adjoint,
)
from metaweight.problems.recording.trajectory import Trajectory
from support.naive import cosine, mixed_product, relative_error
from support.reweighting import Plain, program
from support.unrolled import (
    NAIVE,
    Setting,
    Upper,
    batches,
    build,
    engine_gradient,
    lower_loss,
)
from support.zoo import over

from metaweight import (
    SAMA,
    Config,
    ConfigurationError,
    FiniteDifference,
    Hook,
    HypergradientError,
    ImplicitProblem,
    Unroll,
)

MOMENTUM = {"lr": 0.1, "momentum": 0.9}
CASES = {
    "sgd": Setting(settings={"lr": 0.1, "weight_decay": 0.1}),
    "momentum": Setting(settings=MOMENTUM),
    "momentum, first step": Setting(settings=MOMENTUM, earlier=0),
    "nesterov": Setting(settings={**MOMENTUM, "nesterov": True, "weight_decay": 1e-2}),
    "dampening": Setting(settings={**MOMENTUM, "dampening": 0.3}),
    "adam": Setting(torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.1}),
    "adam, first step": Setting(torch.optim.Adam, {"lr": 0.02}, earlier=0),
    "adamw": Setting(torch.optim.AdamW, {"lr": 0.02}),
    "amsgrad": Setting(torch.optim.Adam, {"lr": 0.02, "amsgrad": True}, earlier=5),
    "rmsprop": Setting(torch.optim.RMSprop, {"lr": 0.01}),
    "rmsprop, centred, momentum": Setting(
        torch.optim.RMSprop,
        {"lr": 0.01, "momentum": 0.8, "centered": True, "weight_decay": 0.05},
    ),
    "adagrad": Setting(torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.2}),
    "nadam": Setting(torch.optim.NAdam, {"lr": 0.02}),
    "clipping": Setting(settings=MOMENTUM, clipping=0.05),
    "clipping with adam": Setting(torch.optim.Adam, {"lr": 0.02}, clipping=0.05),
    "accumulation": Setting(torch.optim.Adam, {"lr": 0.02}, accumulation=3),
}


class Implicit(ImplicitProblem):
    def training_step(self, batch):
        return lower_loss(self.module, list(self.module.parameters()), self.upper.module, batch)


class Settings(Implicit):
    def learned_settings(self):
        return {name: self.upper.module.learned()[name] for name in self.cfg}


def one_step_each(setting):
    return Setting(**{**vars(setting), "steps": 1})


def followed(setting, method):
    """Run, and take every step again with the naive optimizer; the last one differentiably.

    Returns:
        The engine, the naive parameters after the last step, and the gradient they depend on.
    """
    setting = one_step_each(setting)
    engine = build(setting, method, lower=Implicit)
    lower = engine.lower
    weights = list(lower.module.parameters())
    states = [{} for _ in weights]
    for number in range(1, setting.earlier + 2):
        for _ in range(setting.accumulation):
            engine.train_step()
        update = lower.step_state.trajectory.updates[-1]
        gradient = [update.moment.gradients[w].clone().requires_grad_() for w in weights]
        used = gradient
        if setting.clipping:
            norm = torch.sqrt(sum((g**2).sum() for g in gradient))
            assert norm > setting.clipping
            used = [g * setting.clipping / (norm + 1e-6) for g in gradient]
        stepped = [
            NAIVE[setting.optimizer](update.start[w], g, state, number, setting.settings)
            for w, g, state in zip(weights, used, states, strict=True)
        ]
        states = [{k: v.detach() for k, v in s[1].items()} for s in stepped]
    return engine, [s[0] for s in stepped], gradient


def vector_for(weights):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]


def tolerance(setting):
    return 1e-6 if setting.optimizer is torch.optim.NAdam else 1e-9


@pytest.mark.parametrize("case", CASES)
def test_the_exact_preconditioner_is_the_transposed_jacobian_of_the_step(case: str) -> None:
    setting = CASES[case]
    engine, naive, gradient = followed(setting, SAMA(preconditioner="exact"))
    weights = list(engine.lower.module.parameters())
    assert relative_error(weights, naive) < tolerance(setting), "the naive step is another one"
    vector = vector_for(weights)
    expected = [-g for g in torch.autograd.grad(naive, gradient, vector)]
    adjoint = step_adjoint(lower_view(engine.lower), vector, [])
    actual = exact_preconditioned(lower_view(engine.lower), adjoint)
    assert relative_error(actual, expected) < tolerance(setting)


@pytest.mark.parametrize("case", ["nesterov", "adam", "clipping with adam", "accumulation"])
def test_the_exact_product_is_the_mixed_derivative_times_it(case: str) -> None:
    """The central difference leaves an error of alpha² = 1e-8 and rounding of 1e-16 / alpha."""
    method = SAMA(alpha=1e-4, preconditioner="exact")
    engine, naive, gradient = followed(CASES[case], method)
    lower, weights = engine.lower, list(engine.lower.module.parameters())
    theta = [engine.upper.module.penalty]
    vector = vector_for(weights)
    along = [-g for g in torch.autograd.grad(naive, gradient, vector)]

    def loss():
        return torch.stack(
            [lower.training_step(step.batch) for step in lower.step_state.trajectory.window]
        ).mean()

    expected = mixed_product(loss, weights, theta, along)
    assert relative_error(method.vjp(lower_view(lower), vector, theta).values, expected) < 1e-6


@pytest.mark.parametrize(
    "optimizer",
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, ()),
        (torch.optim.AdamW, {"lr": 0.02}, ()),
        (torch.optim.Adagrad, {"lr": 0.1}, ()),
        (torch.optim.SGD, MOMENTUM, ("lr", "momentum", "weight_decay")),
        (torch.optim.Adam, {"lr": 0.02}, ("lr",)),
    ],
    ids=["nesterov", "adamw", "adagrad", "learned settings", "learned rate of adam"],
)
def test_is_one_unrolled_step_where_the_mixed_derivative_does_not_move(optimizer) -> None:
    """``L`` is quadratic in ``w`` and linear in ``θ w``: where it is differentiated is all one."""
    kind, settings, learned = optimizer

    class Linear(Settings):
        def training_step(self, batch):
            weights = list(self.module.parameters())
            penalty = self.upper.module.penalty
            own = sum((w**2).sum() for w in weights)
            return own + sum((s * w).sum() for s, w in zip(penalty, weights, strict=True))

    setting = Setting(kind, settings, steps=1, learned=learned)
    exact = engine_gradient(setting, SAMA(preconditioner="exact"), lower=Linear)
    expected = engine_gradient(setting, Unroll(), lower=Linear)
    assert sum(float(t.norm()) for t in expected) > 1e-6
    assert relative_error(exact, expected) < 1e-9


def test_the_source_is_darts_for_sgd_and_its_diagonal_for_adam() -> None:
    """Bit-equal: the same difference of the same vector. Momentum does not enter."""
    engine = build(Setting(settings=MOMENTUM, steps=1), SAMA(), lower=Implicit)
    engine.train_step()
    lower, theta = engine.lower, [engine.upper.module.penalty]
    vector = vector_for(lower.module.parameters())
    actual = SAMA().vjp(lower_view(lower), vector, theta).values
    expected = FiniteDifference(alpha=0.01).vjp(lower_view(lower), vector, theta).values
    assert torch.equal(actual[0], expected[0])

    engine = build(Setting(torch.optim.Adam, {"lr": 0.02}, steps=1), SAMA(), lower=Implicit)
    engine.train_step()
    engine.train_step()
    lower, theta = engine.lower, [engine.upper.module.penalty]
    moment = lower.step_state.trajectory.updates[-1].moment
    scaled = [
        v * adam_jacobian(lower.optimizer.param_groups[0], lower.optimizer.state[p], g)
        for v, (p, g) in zip(vector, moment.gradients.items(), strict=True)
    ]
    actual = SAMA().vjp(lower_view(lower), vector, theta).values
    expected = FiniteDifference(alpha=0.01).vjp(lower_view(lower), scaled, theta).values
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_first_step_of_adam_has_a_hypergradient(kind: type[torch.optim.Optimizer]) -> None:
    """By hand, with the denominator as a constant: ``u = lr (1 - β1) g / (sqrt(v) + eps)``. The
    central difference has an error of order 1e-6, the square of its length over that of ``w``."""
    engine = build(Setting(kind, {"lr": 0.02}, steps=1), SAMA(alpha=1e-3), lower=Implicit)
    engine.train_step()
    lower, theta = engine.lower, list(engine.upper.module.weigh.parameters())
    weights = list(lower.module.parameters())
    vector = vector_for(weights)
    (step,) = lower.step_state.trajectory.window
    found = lower.step_state.trajectory.updates[-1].moment.gradients
    scaled = [
        0.02 * 0.1 * v / (0.001**0.5 * found[w].abs() + 1e-8)
        for v, w in zip(vector, weights, strict=True)
    ]

    def attached():
        losses = torch.nn.functional.cross_entropy(
            lower.module(step.batch[0]), step.batch[1], reduction="none"
        )
        return (engine.upper.module.weigh(losses.unsqueeze(1)).squeeze(1) * losses).mean()

    expected = mixed_product(attached, weights, theta, scaled)
    actual = SAMA(alpha=1e-3).vjp(lower_view(lower), vector, theta).values
    assert relative_error(actual, expected) < 1e-4


def test_the_usual_length_holds_for_a_network() -> None:
    """The paper's, 1.0, leaves another direction; AdamW's preconditioned vector is uneven."""
    engine = program(Plain, config=Config(type=SAMA()), dtype=torch.float32, batch_norm=False)
    lower, theta = engine.classifier, list(engine.judge.module.parameters())
    lower.set_optimizer(torch.optim.AdamW(lower.module.parameters(), lr=0.02))
    lower.step_state.trajectory = Trajectory(SAMA().recording(lower_view(lower)))
    for _ in range(4):
        engine.train_step()
    (step,) = lower.step_state.trajectory.window
    weights = list(lower.module.parameters())
    loss = torch.nn.functional.cross_entropy(lower.module(step.batch[0].flip(0)), step.batch[1])
    vector = list(torch.autograd.grad(loss, weights))
    usual, paper = (m.vjp(lower_view(lower), vector, theta).values for m in (SAMA(), SAMA(1.0)))
    scaled = [v.double() for v in adam_preconditioned(lower_view(lower), vector)]
    lower.module.double()
    engine.judge.module.double()
    lower.cfg = "attached"
    batch = (step.batch[0].double(), step.batch[1])
    expected = mixed_product(lambda: lower.training_step(batch), weights, theta, scaled)
    for found in (usual, paper):
        print(f"{relative_error(found, expected):.2g}, cosine {cosine(found, expected):.4f}")
    assert relative_error(usual, expected) < 0.01
    assert relative_error(paper, expected) > 0.05


def test_usual_lengths() -> None:
    assert SAMA().length == 0.01
    assert SAMA(multitask=True).length == 1.0
    assert resolve(Config(type="sama")).length == 0.01
    assert resolve(Config(type="sama", sama_multitask=True)).length == 1.0
    assert resolve(Config(type="sama", sama_adam_alpha=1.0)).length == 1.0


@pytest.mark.parametrize("case", ["amsgrad", "rmsprop", "adagrad", "nadam"])
def test_what_the_source_does_not_know_is_exact(case: str) -> None:
    setting = one_step_each(CASES[case])
    default = engine_gradient(setting, SAMA(), lower=Implicit)
    exact = engine_gradient(setting, SAMA(preconditioner="exact"), lower=Implicit)
    assert all(torch.equal(a, b) for a, b in zip(default, exact, strict=True))


def test_nothing_is_recorded_that_is_not_needed() -> None:
    """The parameters before the step are a copy of the network."""
    for case, needs in (("momentum", False), ("adam", False), ("adagrad", True)):
        engine = build(one_step_each(CASES[case]), SAMA(), lower=Implicit)
        engine.train_step()
        update = engine.lower.step_state.trajectory.updates[-1]
        assert bool(update.start) == needs
        assert (update.moment is not None) == (case != "momentum")


@pytest.mark.parametrize("preconditioner", ["source", "exact"])
def test_multitask_leaves_the_parameters_displaced_along_the_preconditioned_vector(
    preconditioner: str,
) -> None:
    method = SAMA(alpha=0.1, multitask=True, preconditioner=preconditioner)
    engine = build(one_step_each(CASES["adam"]), method, lower=Implicit)
    lower, seen = engine.lower, {}

    class Look(Hook):
        def before_step(self, engine, problem):
            if problem is not lower:
                seen["w"] = [p.detach().clone() for p in lower.module.parameters()]

    engine.hooks = HookList([Look()])
    engine.train_step()
    moved = [p.detach() - w for p, w in zip(lower.module.parameters(), seen["w"], strict=True)]
    for p, w in zip(lower.module.parameters(), seen["w"], strict=True):
        p.data.copy_(w)
    inputs, labels = batches(2, 1)[0]
    loss = torch.nn.functional.cross_entropy(lower.module(inputs), labels)
    vector = list(torch.autograd.grad(loss, list(lower.module.parameters())))
    if preconditioner == "source":
        along = adam_preconditioned(lower_view(lower), vector)
    else:
        along = exact_preconditioned(lower_view(lower), step_adjoint(lower_view(lower), vector, []))
    length = torch.cat([t.reshape(-1) for t in along]).norm()
    expected = [-0.1 * t / length for t in along]
    assert relative_error(moved, expected) < 1e-9


def test_adam_without_a_recording_is_refused() -> None:
    engine = build(one_step_each(CASES["adam"]), FiniteDifference(), lower=Implicit)
    engine.train_step()
    vector = vector_for(engine.lower.module.parameters())
    with pytest.raises(HypergradientError, match="'lower' was not recorded with its gradients"):
        adam_preconditioned(lower_view(engine.lower), vector)


def two_levels(optimizer, lower_class, method):
    net, judge = torch.nn.Linear(2, 2).double(), Upper(2).double()

    class Above(ImplicitProblem):
        def training_step(self, batch):
            return self.lower(batch[0]).sum()

    lower = lower_class(
        "lower", Config(type=method), net, optimizer(net), train_data_loader=batches(0, 1)
    )
    upper = Above(
        "upper",
        None,
        judge,
        torch.optim.SGD(judge.parameters(), 0.1),
        train_data_loader=batches(0, 1),
    )
    return over(upper, lower)


def test_refuses_an_optimizer_that_cannot_be_differentiated() -> None:
    def sparse(net):
        return torch.optim.SparseAdam(net.parameters())

    with pytest.raises(
        ConfigurationError, match=r"'lower' asks for type='sama', but.*SparseAdam.*type='darts'"
    ):
        two_levels(sparse, Implicit, SAMA())


def test_refuses_steps_it_does_not_know() -> None:
    class Own(Implicit):
        def custom_optimizer_step(self):
            self.optimizer.step()

    def sgd(net):
        return torch.optim.SGD(net.parameters(), 0.1)

    with pytest.raises(
        ConfigurationError, match=r"'lower' asks for SAMA with the exact.*custom_optimizer_step"
    ):
        two_levels(sgd, Own, SAMA(preconditioner="exact"))
    two_levels(sgd, Own, SAMA())

    class Called(Implicit):
        def grad_callback(self):
            pass

    with pytest.warns(UserWarning, match=r"Called.grad_callback may change the steps of.*'lower'"):
        two_levels(sgd, Called, SAMA(preconditioner="exact"))
