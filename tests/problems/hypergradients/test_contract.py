"""What every hypergradient must keep, whatever it computes."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.state.random_streams import RandomState
from support.methods import GRADIENT_METHODS
from support.naive import everything
from support.reweighting import Declared, program

from metaweight import (
    Config,
    ImplicitProblem,
    Reinforce,
    ZeroOrder,
)

# These measure the upper loss where others multiply by its gradient. Here it is a vector times the
# lower parameters, which has that vector for its gradient.
VALUE_METHODS = {
    "zero order": ZeroOrder(samples=2),
    "reinforce": Reinforce(samples=2),
    "reinforce, from the start": Reinforce(baseline="start", samples=2),
}

METHODS = GRADIENT_METHODS | VALUE_METHODS


class Restless(Declared):
    """Draws from every random stream, can be told to fail, and fails late."""

    fail = False

    def sample_losses(self, batch):
        losses = Declared.sample_losses(self, batch)
        scale = 1 + 0.1 * (random.random() + np.random.rand() + torch.rand(()).double())
        if self.fail:
            raise RuntimeError("the loss failed")
        return losses * scale


class Deciding(ImplicitProblem):
    """Keeps each sample or not, with the probability that is its weight in :class:`Restless`."""

    fail = False
    sample_losses = Restless.sample_losses

    def training_step(self, batch):
        losses = self.sample_losses(batch)
        keep = torch.distributions.Bernoulli(self.judge(losses.detach()))
        kept = keep.sample()
        return {"loss": (kept * losses).mean(), "log_prob": keep.log_prob(kept)}


def stepped(name, **settings):
    """A program whose lower problem has come to its hand-over, by the whole loop's values too."""
    method, loop = METHODS[name], {}
    if name in VALUE_METHODS:
        loop = {"unroll_steps": 2, "gradient_accumulation": 2}
    engine = program(
        Deciding if isinstance(method, Reinforce) else Restless,
        config=Config(type=method, **loop),
        dropout=0.5,
        momentum=0.9,
        **settings,
    )
    for _ in range(math.prod(loop.values())):
        engine.run()
    vector = [
        torch.linspace(-1, 2, p.numel(), dtype=p.dtype).reshape(p.shape)
        for p in engine.classifier.module.parameters()
    ]
    return engine, vector


def product(name, engine, vector, method=None, value_fails=False):
    """What a method makes of a vector, or of an upper loss that has it for its gradient."""
    method = METHODS[name] if method is None else method
    lower, theta = lower_view(engine.classifier), list(engine.judge.module.parameters())
    if name in GRADIENT_METHODS:
        return method.vjp(lower, vector, theta).values

    def value():
        if value_fails:
            raise RuntimeError("the loss failed")
        with torch.no_grad():  # Moves running statistics and draws masks, as upper losses do.
            engine.judge.training_step(engine.judge.cur_batch)
        parameters = engine.classifier.module.parameters()
        return sum((v * p.detach()).sum() for v, p in zip(vector, parameters, strict=True))

    return method.estimate(lower, value, theta).values


def full_state(engine):
    """Everything an evaluation may not change, as one comparable list."""
    net, judge = engine.classifier.module, engine.judge.module
    streams = [
        torch.get_rng_state(),
        torch.tensor(random.getstate()[1]),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
    ]
    flags = [torch.tensor([p.requires_grad for p in (*net.parameters(), *judge.parameters())])]
    gradients = [p.grad for p in (*net.parameters(), *judge.parameters()) if p.grad is not None]
    optimizer = [
        s
        for state in engine.classifier.optimizer.state.values()
        for s in state.values()
        if isinstance(s, torch.Tensor)
    ]
    return [
        *everything(net),
        *everything(judge),
        *streams,
        *flags,
        *[t.clone() for t in gradients + optimizer],
    ]


def assert_same(before, after):
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        *((name, fails) for name in METHODS for fails in ("nothing", "loss")),
        *((name, "value") for name in VALUE_METHODS),
    ],
)
def test_leaves_no_trace(name, fails):
    """Parameters, buffers, random streams, .grad, requires_grad, optimizer: bit-equal."""
    engine, vector = stepped(name)
    for problem in (engine.classifier, engine.judge):
        first = next(problem.module.parameters())
        first.grad = torch.ones_like(first)
    torch.default_generator.manual_seed(3), random.seed(3), np.random.seed(3)
    np.random.randn()  # leaves a Gaussian for later in NumPy's generator
    before = full_state(engine)
    engine.classifier.fail = fails == "loss"
    refused = pytest.raises(RuntimeError, match="the loss failed")
    with nullcontext() if fails == "nothing" else refused:
        product(name, engine, vector, value_fails=fails == "value")
    assert_same(before, full_state(engine))
    assert list(engine.classifier.trainable_parameters())


@pytest.mark.parametrize("name", METHODS)
def test_is_deterministic_and_replays_the_steps_own_random_numbers(name):
    """Whatever the streams are at now, the product is that of the recorded step."""
    engine, vector = stepped(name)
    first = product(name, engine, vector)
    torch.default_generator.manual_seed(123), random.seed(5), np.random.seed(7)
    second = product(name, engine, vector)
    assert_same(first, second)
    engine.classifier.step_state.trajectory.window[0].random.__init__(torch.device("cpu"))
    other = product(name, engine, vector)
    assert not torch.allclose(first[0], other[0], rtol=1e-3)


@pytest.mark.parametrize("name", VALUE_METHODS)
def test_another_seed_is_another_estimate(name):
    engine, vector = stepped(name)
    first = product(name, engine, vector)
    other = product(name, engine, vector, replace(METHODS[name], seed=1))
    assert not torch.allclose(first[0], other[0], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_keeps_dtype_and_shape(name, dtype):
    engine, vector = stepped(name, dtype=dtype)
    found = product(name, engine, vector)
    theta = list(engine.judge.module.parameters())
    assert [p.dtype for p in found] == [dtype] * len(theta)
    assert [p.shape for p in found] == [t.shape for t in theta]
    assert all(torch.isfinite(p).all() for p in found)


@pytest.mark.parametrize("name", METHODS)
def test_zero_vector_gives_zero(name):
    """Also where the step is divided by the vector's norm."""
    engine, vector = stepped(name)
    for p in product(name, engine, [0 * v for v in vector]):
        torch.testing.assert_close(p, torch.zeros_like(p))


@pytest.mark.parametrize("name", METHODS)
def test_is_odd_in_the_vector(name):
    """Every product here is linear in v; oddness holds to rounding also for the differences.

    Except for one-sided differences, whose error is even: of the relative order of alpha, or of
    1 / strength.
    """
    one_sided = "one-sided" in name or "penalty" in name
    rtol = 1e-4 if one_sided else 1e-8
    engine, vector = stepped(name)
    positive = product(name, engine, vector)
    negative = product(name, engine, [-v for v in vector])
    for p, n in zip(positive, negative, strict=True):
        torch.testing.assert_close(p, -n, rtol=rtol, atol=1e-10)


def test_random_state_of_a_device_is_captured():
    state = RandomState(torch.device("cpu"))
    first = torch.rand(3)
    state.restore()
    assert torch.equal(first, torch.rand(3))
