"""The one-sided difference against double backward at the parameters before the step, in float64.

A step of 1e-6 leaves a truncation error of about 1e-6 and rounding of about 1e-16 / 1e-6 in each
loss, so relative 1e-4 leaves room for both and for no other point, mask or buffer.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from metaweight.problems import lower_view
from support.naive import cosine, everything, mixed_product, relative_error
from support.reweighting import Declared, Plain, program

from metaweight import Config, FiniteDifference, HypergradientError, ReweightedProblem, Reweighting

FINE = Reweighting(derivative="one_sided", alpha=1e-6)


class OwnStep(Declared):
    """Trains on something else than what it declares, without leaving its losses."""

    def training_step(self, batch):
        samples = self.checked_samples(batch)
        weights = self.checked_weights(samples.detached(), batch)
        return (weights * samples.losses.exp()).mean()


class OtherBatch(Declared):
    """Trains on what it declares, but of another batch, whose losses it leaves."""

    def training_step(self, batch):
        inputs, labels = batch
        return super().training_step((inputs.flip(0), labels))


class Drifting(torch.nn.Module):
    """Multiplies by a buffer that every pass changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        self.factor *= 1.1
        return x * self.factor.clone()


def stepped(kind=Declared, *, accumulation=1, drifting=False, method=FINE, **settings):
    """A program after three lower steps with momentum and decay, the network as it was before the
    last one, and a vector for it."""
    config = settings.pop("config", {})
    engine = program(
        kind, config=Config(type=method, gradient_accumulation=accumulation, **config), **settings
    )
    classifier = engine.classifier
    if drifting:
        classifier.module.append(Drifting())
    parameters = list(classifier.module.parameters())
    classifier.set_optimizer(
        torch.optim.SGD(parameters, lr=0.3, momentum=0.9, weight_decay=1e-2, nesterov=True)
    )
    for _ in range(2 * accumulation):
        engine.train_step()
    before = copy.deepcopy(classifier.module.state_dict())
    for _ in range(accumulation):
        engine.train_step()
    generator = torch.Generator().manual_seed(9)
    vector = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for p in parameters
    ]
    return classifier, before, list(engine.judge.module.parameters()), vector


def double_backward(classifier, before, theta, vector):
    """``-(∂²L/∂θ∂w) v`` of the declared loss, from where ``before`` says."""
    after = copy.deepcopy(classifier.module.state_dict())
    classifier.module.load_state_dict(before)

    def loss():
        losses = []
        for step in classifier.step_state.trajectory.window:
            step.random.restore()
            losses.append(ReweightedProblem.training_step(classifier, step.batch))
        return torch.stack(losses).mean()

    found = mixed_product(loss, list(classifier.module.parameters()), theta, vector)
    classifier.module.load_state_dict(after)
    return found


def product(method, classifier, theta, vector):
    return method.vjp(lower_view(classifier), vector, theta).values


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_is_the_derivative_before_the_step(normalise, accumulation, dropout):
    """At the parameters after the step the product is another one."""
    classifier, before, theta, vector = stepped(
        accumulation=accumulation, extra=normalise, dropout=dropout
    )
    actual = product(FINE, classifier, theta, vector)
    assert relative_error(actual, double_backward(classifier, before, theta, vector)) < 1e-4
    after = double_backward(classifier, classifier.module.state_dict(), theta, vector)
    assert relative_error(actual, after) > 0.05


def test_the_error_falls_with_the_step():
    """In proportion: a tenth of the step leaves about a tenth of the error."""
    classifier, before, theta, vector = stepped(dropout=0.5)
    expected = double_backward(classifier, before, theta, vector)
    coarse, fine = (
        relative_error(
            product(Reweighting(derivative="one_sided", alpha=a), classifier, theta, vector),
            expected,
        )
        for a in (1e-3, 1e-4)
    )
    print(f"relative error at alpha 1e-3: {coarse:.1e}, at 1e-4: {fine:.1e}")
    assert coarse < 1e-2
    assert 8 < coarse / fine < 12


@pytest.mark.parametrize("kind", [Declared, OwnStep, OtherBatch])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_passes_begin_with_the_buffers_of_the_step(kind, accumulation):
    """With another factor than the step's the difference would be off by 0.1 / 1e-6."""
    classifier, before, theta, vector = stepped(kind, accumulation=accumulation, drifting=True)
    actual = product(FINE, classifier, theta, vector)
    assert relative_error(actual, double_backward(classifier, before, theta, vector)) < 1e-4


@pytest.mark.parametrize(("kind", "passes"), [(Declared, 1), (OwnStep, 2), (OtherBatch, 2)])
def test_takes_one_pass_where_the_step_left_its_losses(kind, passes):
    classifier, before, theta, vector = stepped(kind, accumulation=3, dropout=0.5)
    seen = []
    losses = classifier.sample_losses

    def counting(batch):
        seen.append(torch.is_grad_enabled())
        return losses(batch)

    classifier.sample_losses = counting
    actual = product(FINE, classifier, theta, vector)
    assert seen == [False] * 3 * passes
    assert relative_error(actual, double_backward(classifier, before, theta, vector)) < 1e-4


@pytest.mark.parametrize(
    ("full_precision", "least"), [(True, 0.99999), (False, 0.999)], ids=["fp32", "bf16"]
)
def test_bf16_training_keeps_its_hypergradient(full_precision, least):
    """Losses of a step in bf16, with 8 bits, must not be subtracted from those of a pass in fp32.

    The cosine was 1.000000 with passes in fp32, and 0.999995 with those in bf16, whose step is
    wider.
    """
    method = Reweighting(derivative="one_sided", full_precision=full_precision)
    with nullcontext() if full_precision else pytest.warns(UserWarning, match="in bfloat16: roun"):
        classifier, before, theta, vector = stepped(
            dtype=torch.float32, config={"precision": "bf16"}, method=method
        )
        actual = product(method, classifier, theta, vector)
    step = classifier.step_state.trajectory.window[0]
    assert step.samples is not None
    step.batch = (step.batch[0].double(), step.batch[1])
    classifier.module.double()
    classifier.judge.module.double()
    expected = double_backward(classifier, before, theta, [v.double() for v in vector])
    print(f"cosine {cosine(actual, expected):.6f}")
    assert cosine(actual, expected) > least


@pytest.mark.parametrize(
    ("derivative", "alpha"), [("central_difference", 0.01), ("one_sided", 3e-4)]
)
def test_default_step(derivative, alpha):
    classifier, _, theta, vector = stepped()
    skipped = product(Reweighting(derivative=derivative), classifier, theta, vector)
    given = product(Reweighting(derivative=derivative, alpha=alpha), classifier, theta, vector)
    assert all(torch.equal(a, b) for a, b in zip(skipped, given, strict=True))


def test_refuses_a_step_recorded_without_parameters():
    classifier, _, theta, vector = stepped(method=Reweighting())
    with pytest.raises(HypergradientError, match=r"'classifier' was not recorded with the param"):
        product(FINE, classifier, theta, vector)


def test_records_for_a_one_sided_difference_only():
    problem = Declared("classifier")
    assert FINE.recording(lower_view(problem)).parameters
    assert FINE.recording(lower_view(problem)).losses
    assert not Reweighting().recording(lower_view(problem)).parameters
    assert not Reweighting(derivative="forward_mode").recording(lower_view(problem)).losses
    engine = program(Plain, config=Config(type=FiniteDifference()))
    assert not engine.classifier.step_state.trajectory.recording.losses


def test_goes_back_and_returns_with_the_parameters_it_does_not_differentiate_through():
    class LastLayer(Declared):
        def meta_trainable_parameters(self):
            return list(self.module[-1].parameters())

    classifier, before, theta, vector = stepped(LastLayer)
    last = [torch.zeros_like(v) for v in vector[:-2]] + vector[-2:]
    there = everything(classifier.module)
    actual = product(FINE, classifier, theta, vector[-2:])
    assert all(torch.equal(a, b) for a, b in zip(everything(classifier.module), there, strict=True))
    assert relative_error(actual, double_backward(classifier, before, theta, last)) < 1e-4
