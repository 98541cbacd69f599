"""The score-function hypergradient against sums over all decisions, in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from support.naive import relative_error
from support.small import Point
from support.zoo import FlippedGroup, over

from metaweight import (
    Config,
    HypergradientError,
    ImplicitProblem,
    LossError,
    Reinforce,
)

START, RATE, STEPS = (0.4, -0.3), 0.3, 2
TARGETS = torch.tensor([1.0, -2.0], dtype=torch.float64)


def sample_losses(w):
    return torch.stack([(w[0] - TARGETS[0]) ** 2, (w[0] * w[1] - TARGETS[1]) ** 2])


class Chooser(ImplicitProblem):
    """Keeps each of two samples or not, with learned probabilities that look at ``w``."""

    def training_step(self, batch):
        w = self.module.w
        keep = torch.distributions.Bernoulli(logits=self.policy.module.w + w.detach())
        kept = keep.sample()
        self.draws = [*getattr(self, "draws", []), kept]
        return {"loss": (kept * sample_losses(w)).sum(), "log_prob": keep.log_prob(kept)}

    def on_inner_loop_start(self):
        self.module.w.data.copy_(torch.tensor(START, dtype=torch.float64))


class Policy(ImplicitProblem):
    """Measures a loss that has no derivative."""

    def training_step(self, batch):
        w = self.chooser.module.w.detach()
        return (w**2).sum() + (w > 0).sum()


def build(method, lower=Chooser, upper=Policy, **settings):
    low, up = Point(*START), Point(0.3, -0.2)
    chooser = lower(
        "chooser",
        Config(type=method, unroll_steps=STEPS, **settings),
        low,
        torch.optim.SGD(low.parameters(), RATE),
        train_data_loader=[torch.zeros(1)],
    )
    policy = upper(
        "policy",
        None,
        up,
        torch.optim.SGD(up.parameters(), 0.0),
        train_data_loader=[torch.zeros(1)],
    )
    engine = over(policy, chooser, train_iters=STEPS)
    engine.found = []
    policy.grad_callback = lambda: engine.found.append(up.w.grad.clone())
    return engine


def loops(engine, number):
    for _ in range(number * STEPS):
        engine.train_step()
    return torch.stack(engine.found)


def exact_gradient():
    """``d/dθ Σ_a p_θ(a) F(w_T(a))`` over all 16 sequences of decisions."""
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for decisions in product(product((0.0, 1.0), repeat=2), repeat=STEPS):
        w = torch.tensor(START, dtype=torch.float64)
        log_prob = torch.zeros((), dtype=torch.float64)
        for decision in decisions:
            kept = torch.tensor(decision, dtype=torch.float64)
            p = (theta + w).sigmoid()
            log_prob = log_prob + (kept * p.log() + (1 - kept) * (1 - p).log()).sum()
            place = w.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((kept * sample_losses(place)).sum(), place)
            w = w - RATE * gradient
        total = total + log_prob.exp() * ((w**2).sum() + (w > 0).sum())
    return torch.autograd.grad(total, theta)[0]


METHODS = {
    "none": (Reinforce(baseline="none", samples=1), 400),
    "none, two runs": (Reinforce(baseline="none", samples=2), 250),
    "start": (Reinforce(baseline="start", samples=1), 400),
    "leave one out": (Reinforce(samples=4), 120),
}


@pytest.mark.parametrize(
    "name",
    [
        "leave one out",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("none", "none, two runs", "start")),
    ],
)
def test_is_unbiased(name: str) -> None:
    """Mean over independent loops, within 4 of its measured standard errors.

    The seed is fixed, so this cannot fail by chance later; over all seeds the two coordinates would
    pass with probability 0.9999.
    """
    method, number = METHODS[name]
    torch.default_generator.manual_seed(0)
    found = loops(build(method), number)
    error = found.std(0) / number**0.5
    z = (found.mean(0) - exact_gradient()) / error
    print(f"{name}: exact {exact_gradient().tolist()}, standard error {error.tolist()}, z {z}")
    assert (z.abs() < 4).all()
    assert (error < 0.3 * exact_gradient().abs().max()).all(), "too noisy to tell"


@pytest.mark.slow
def test_leaving_one_out_takes_noise_away() -> None:
    """At equal cost of four runs; and the status' standard error is the noise that is seen."""
    spread, status = {}, []
    for baseline in ("none", "leave_one_out"):
        torch.default_generator.manual_seed(1)
        engine = build(Reinforce(baseline=baseline, samples=4))
        errors = []
        for _ in range(120):
            loops(engine, 1)
            errors.append(engine.chooser.hypergradient_status.values["standard error"])
        spread[baseline] = torch.stack(engine.found).var(0).sum()
        status.append(float(torch.stack(errors).square().mean() / spread[baseline]))
    print(f"variance {spread}, mean squared standard error over variance {status}")
    assert spread["leave_one_out"] < 0.5 * spread["none"]
    assert status[0] == pytest.approx(1, rel=0.3)
    assert status[1] == pytest.approx(1, rel=0.5)


def test_the_first_run_repeats_the_decisions_and_the_others_draw_anew() -> None:
    engine = build(Reinforce(baseline="leave_one_out", samples=3))
    torch.default_generator.manual_seed(3)
    loops(engine, 1)
    draws = engine.chooser.draws
    assert len(draws) == STEPS * (1 + 3)
    assert all(
        torch.equal(a, b) for a, b in zip(draws[:STEPS], draws[STEPS : 2 * STEPS], strict=True)
    )
    later = torch.stack(draws[2 * STEPS :])
    assert not torch.equal(later[:STEPS], later[STEPS:])


class Masked(ImplicitProblem):
    """A network with dropout and batch norm that keeps samples at random."""

    def training_step(self, batch):
        inputs, labels = batch
        keep = torch.distributions.Bernoulli(logits=self.policy.module.w[labels])
        kept = keep.sample()
        losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
        log_prob = keep.log_prob(kept).sum()
        if self.step_state.trajectory._open is not None:
            self.cfg.append(log_prob)
        return {"loss": (kept * losses).mean(), "log_prob": log_prob}


class Error(ImplicitProblem):
    def training_step(self, batch):
        inputs, labels = batch
        return (self.chooser(inputs).argmax(1) != labels).double().mean()


def masked(method, accumulation, kind=Masked):
    torch.default_generator.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)
    ).double()
    generator = torch.Generator().manual_seed(1)
    data = [
        (
            torch.randn(12, 4, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (12,), generator=generator),
        )
        for _ in range(5)
    ]
    chooser = kind(
        "chooser",
        Config(type=method, unroll_steps=2, gradient_accumulation=accumulation),
        network,
        torch.optim.SGD(network.parameters(), 0.1, momentum=0.9),
        train_data_loader=data,
        extra_config=[],
    )
    up = Point(0.1, 0.2, 0.3)
    policy = Error(
        "policy", None, up, torch.optim.SGD(up.parameters(), 0.0), train_data_loader=data[:1]
    )
    engine = over(policy, chooser, train_iters=2 * accumulation)
    return engine


@pytest.mark.parametrize("accumulation", [1, 3])
def test_scores_are_those_of_all_micro_batches_of_the_loop(accumulation: int) -> None:
    """One run without a baseline is ``F Σ ∇ log p``; both are known from training itself.

    The loss is that of the step itself, so equal masks and statistics give it to rounding.
    """
    engine = masked(Reinforce(baseline="none", samples=1), accumulation)
    seen, losses = [], []
    policy, w = engine.policy, engine.policy.module.w
    policy.grad_callback = lambda: seen.append(w.grad.clone())
    evaluate = policy.evaluate

    def noted(batch):
        evaluated = evaluate(batch)
        losses.append(evaluated.loss)
        return evaluated

    policy.evaluate = noted
    engine.run()
    assert len(engine.chooser.cfg) == 2 * accumulation
    (score,) = torch.autograd.grad(sum(engine.chooser.cfg), w)
    assert float(losses[0]) > 0.1
    assert relative_error(seen, [losses[0] * score]) < 1e-10


def test_an_error_rate_is_reduced() -> None:
    """A policy learns to drop the group whose labels are flipped, from the error rate alone."""
    samples = FlippedGroup()

    class Classifier(ImplicitProblem):
        def training_step(self, batch):
            keep = torch.distributions.Bernoulli(logits=self.policy.module.w)
            kept = keep.sample()
            losses = kept[samples.group] * samples.losses(self.module.w)
            return {"loss": losses.mean(), "log_prob": keep.log_prob(kept)}

        def on_inner_loop_start(self):
            self.module.w.data.zero_()

    class Policy(ImplicitProblem):
        def training_step(self, batch):
            return samples.error(self.classifier.module.w)

    low, up = Point(*[0.0] * 5), Point(0.0, 0.0)
    classifier = Classifier(
        "classifier",
        Config(type="reinforce", unroll_steps=3, log_step=1),
        low,
        torch.optim.SGD(low.parameters(), 1.0),
        train_data_loader=[0],
    )
    policy = Policy(
        "policy", None, up, torch.optim.Adam(up.parameters(), 0.1), train_data_loader=[0]
    )
    engine = over(policy, classifier, train_iters=180)
    torch.default_generator.manual_seed(0)
    engine.run()
    clean, flipped = up.w.detach().sigmoid().tolist()
    error = float(samples.error(low.w))
    print(f"kept with probability: clean {clean:.2f}, flipped {flipped:.2f}; error {error:.2f}")
    assert clean > 0.7
    assert flipped < 0.3
    assert error < 0.2


def test_a_direct_gradient_comes_from_autograd() -> None:
    """The decisions have no influence on this loss, and with the baseline none is seen."""

    class Direct(Policy):
        def training_step(self, batch):
            return (self.module.w**3).sum()

    engine = build(Reinforce(samples=2), upper=Direct)
    found = loops(engine, 1)
    torch.testing.assert_close(found[0], 3 * engine.policy.module.w.detach() ** 2)


class Plain(Chooser):
    def training_step(self, batch):
        return super().training_step(batch)["loss"]


class Detached(Chooser):
    def training_step(self, batch):
        output = super().training_step(batch)
        return {**output, "log_prob": output["log_prob"].detach()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Plain,
            r"'chooser' asks for Reinforce, but.*returned no tensor under 'log_prob'; return a",
        ),
        (Detached, r"returned a 'log_prob' that depends on no parameter that requires a gradient"),
    ],
)
def test_a_step_without_a_log_probability_is_refused(kind, message) -> None:
    with pytest.raises(LossError, match=message):
        loops(build(Reinforce(), lower=kind), 1)


def test_an_impossible_decision_is_refused() -> None:
    class Certain(Chooser):
        def training_step(self, batch):
            output = super().training_step(batch)
            return {**output, "log_prob": (self.policy.module.w * 0).log()}

    with pytest.raises(HypergradientError, match="Reinforce through problem 'chooser' is not fin"):
        loops(build(Reinforce(), lower=Certain), 1)
