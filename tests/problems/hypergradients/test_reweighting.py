"""The native path against double backward of the same detached loss, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import lower_view
from support.naive import cosine, mixed_product, relative_error
from support.reweighting import Declared, Plain, program
from support.zoo import NumberJudge, WeighedNumber, over
from torch.overrides import TorchFunctionMode

from metaweight import Config, ConfigurationError, FiniteDifference, LossError, Reweighting


def stepped(**settings):
    """A program after one lower step, and a vector ``v`` for it."""
    engine = program(**settings)
    engine.run()
    classifier = engine.classifier
    generator = torch.Generator().manual_seed(9)
    vector = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for p in classifier.module.parameters()
    ]
    return engine, classifier, list(engine.judge.module.parameters()), vector


def double_backward(engine, classifier, theta, vector):
    """``-(∂²L/∂θ∂w) v`` of the loss as it is trained, over the whole accumulation window."""
    weights = list(classifier.module.parameters())

    def loss():
        losses = []
        for step in classifier.step_state.trajectory.window:
            step.random.restore()
            losses.append(classifier.training_step(step.batch))
        return torch.stack(losses).mean()

    return mixed_product(loss, weights, theta, vector)


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_forward_mode_equals_double_backward(normalise, accumulation, dropout):
    """Both are exact, so 1e-10 in float64 is rounding alone."""
    engine, classifier, theta, vector = stepped(
        config=Config(gradient_accumulation=accumulation), extra=normalise, dropout=dropout
    )
    for _ in range(2 * accumulation):
        engine.train_step()
    expected = double_backward(engine, classifier, theta, vector)
    actual = (
        Reweighting(derivative="forward_mode").vjp(lower_view(classifier), vector, theta).values
    )
    assert relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_central_difference_is_close_and_converges(normalise, dropout):
    """The error is O(alpha²): 4 times smaller steps must leave about 16 times less of it."""
    engine, classifier, theta, vector = stepped(extra=normalise, dropout=dropout)
    expected = double_backward(engine, classifier, theta, vector)
    errors = [
        relative_error(
            Reweighting(alpha=alpha).vjp(lower_view(classifier), vector, theta).values, expected
        )
        for alpha in (0.04, 0.01)
    ]
    print(f"relative error at alpha 0.04: {errors[0]:.1e}, at 0.01: {errors[1]:.1e}")
    assert errors[1] < 3e-4
    assert 8 < errors[0] / errors[1] < 32


def test_detached_and_attached_losses_have_different_gradients():
    """The native path follows the stop-gradient; the finite difference of the loss cannot."""
    engine, classifier, theta, vector = stepped(kind=Plain, config=Config(type=FiniteDifference()))
    detached = double_backward(engine, classifier, theta, vector)
    classifier.cfg = "attached"
    attached = double_backward(engine, classifier, theta, vector)
    difference = classifier.hypergradient.vjp(lower_view(classifier), vector, theta).values
    assert relative_error(difference, attached) < 1e-4
    assert relative_error(difference, detached) > 0.05


def test_darts_means_the_native_path_for_a_declared_problem():
    engine = program(config=Config(type="darts", darts_alpha=0.02))
    assert engine.classifier.hypergradient == Reweighting(alpha=0.02)
    assert isinstance(
        program(config=Config(type=FiniteDifference())).classifier.hypergradient, FiniteDifference
    )


def test_hand_computed_meta_weight_net_step():
    """l_i = .5 (w - y_i)², w = 0, y = (1, -3), lr .1, V = sigmoid(θ0 + θ1 l), θ = 0,
    F = .5 (w - 2)².

    The step: w' = 0 - .1 * mean(.5 * (0 - y_i)) = -.05. At w', l = (.55125, 4.35125),
    d_i = (w' - y_i) v with v = w' - 2 = -2.05, and the product is
    -mean(V'(0) (1, l_i) d_i) with V'(0) = .25. Before the step, l = (.5, 4.5), d_i = -y_i v; the
    one-sided difference adds eps v² / 2 = 1e-4 to each d_i.
    """

    class Network(torch.nn.Module):
        def __init__(self, start):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def build(derivative):
        lower, upper = Network([0.0]), Network([0.0, 0.0])
        classifier = WeighedNumber(
            "classifier",
            Config(type=Reweighting(derivative=derivative, alpha=1e-4)),
            lower,
            torch.optim.SGD(lower.parameters(), lr=0.1),
            train_data_loader=[torch.tensor([1.0, -3.0], dtype=torch.float64)],
        )
        judge = NumberJudge(
            "judge",
            module=upper,
            optimizer=torch.optim.SGD(upper.parameters(), lr=1.0),
            train_data_loader=[torch.zeros(1)],
        )
        engine = over(judge, classifier, train_iters=1)
        engine.run()
        return lower.w, upper.w

    w, y = -0.05, torch.tensor([1.0, -3.0], dtype=torch.float64)
    losses, directional = 0.5 * (w - y) ** 2, (w - y) * (w - 2)
    expected = -torch.stack([directional.mean(), (losses * directional).mean()]) * 0.25
    torch.testing.assert_close(
        expected, torch.tensor([0.486875, 3.140952], dtype=torch.float64), atol=1e-6, rtol=0
    )
    for derivative in ("forward_mode", "central_difference"):
        lower, theta = build(derivative)
        torch.testing.assert_close(lower.detach(), torch.tensor([w], dtype=torch.float64))
        torch.testing.assert_close(-theta.detach(), expected, rtol=1e-7, atol=0)
    losses, directional = 0.5 * y**2, -y * (w - 2)
    expected = -torch.stack([directional.mean(), (losses * directional).mean()]) * 0.25
    _, theta = build("one_sided")
    torch.testing.assert_close(-theta.detach(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("full_precision", [True, False], ids=["fp32 passes", "bf16 passes"])
def test_bf16_training_keeps_its_hypergradient(full_precision):
    """Against the exact float64 product at the same parameters.

    bf16 has 8 bits, so losses carry a relative error of 4e-3; 0.95 is what its own passes reach,
    0.9999 what passes in single precision do.
    """
    engine, classifier, theta, vector = stepped(
        dtype=torch.float32,
        config=Config(
            precision="bf16",
            type=Reweighting(full_precision=full_precision),
        ),
    )
    actual = classifier.hypergradient.vjp(lower_view(classifier), vector, theta).values
    classifier.module.double()
    engine.judge.module.double()
    classifier.step_state.trajectory.window[0].batch[0].data = (
        classifier.step_state.trajectory.window[0].batch[0].double()
    )
    expected = double_backward(engine, classifier, theta, [v.double() for v in vector])
    assert cosine(actual, expected) > (0.9999 if full_precision else 0.95)


def test_partial_parameters_are_the_only_ones_differentiated_through():
    class LastLayer(Declared):
        def meta_trainable_parameters(self):
            return list(self.module[-1].parameters())

    engine = program(LastLayer)
    engine.run()
    classifier, theta = engine.classifier, list(engine.judge.module.parameters())
    last = list(classifier.module[-1].parameters())
    vector = [torch.linspace(-1, 2, p.numel(), dtype=p.dtype).reshape(p.shape) for p in last]
    step = classifier.step_state.trajectory.window[0]

    def loss():
        step.random.restore()
        return classifier.training_step(step.batch)

    expected = mixed_product(loss, last, theta, vector)
    actual = (
        Reweighting(derivative="forward_mode").vjp(lower_view(classifier), vector, theta).values
    )
    assert relative_error(actual, expected) < 1e-10


def test_refuses_a_problem_that_declares_nothing():
    with pytest.raises(
        ConfigurationError, match=r"'classifier' asks for the 'reweighting'.*declares no"
    ):
        program(Plain, config=Config(type="reweighting"))


@pytest.mark.parametrize("settings", [{"derivative": "magic"}, {"alpha": 0.0}, {"alpha": -0.01}])
def test_refuses_unknown_settings(settings):
    with pytest.raises(ConfigurationError, match=r"Reweighting\("):
        Reweighting(**settings)


def test_wrong_shapes_name_the_problem():
    class Reduced(Declared):
        def sample_losses(self, batch):
            return F.cross_entropy(self.module(batch[0]), batch[1])

    class Matrix(Declared):
        def sample_weights(self, losses, batch):
            return torch.ones(len(losses), 2, dtype=losses.dtype)

    with pytest.raises(LossError, match="sample_losses of problem 'classifier' returned shape"):
        program(Reduced).run()
    with pytest.raises(LossError, match=r"returned shape \(20, 2\) for 20 losses"):
        program(Matrix).run()


def test_modes_are_told_of_the_user_s_operations_alone():
    """Passes of second order are taken in modes that see each question to a tensor."""
    told = []

    class Told(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            told.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    problem = program(Declared).classifier
    batch = problem.get_batch()
    with Told():
        problem.sample_weights(problem.sample_losses(batch).detach(), batch)
    own = [*told, "mul", "mean", "detach"]
    told.clear()
    with Told():
        problem.evaluate(batch)
    assert sorted(told) == sorted(own)
