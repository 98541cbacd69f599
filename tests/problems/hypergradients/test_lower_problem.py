"""An algorithm of a user's own sees a LowerProblem, and any object that is one serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from metaweight.problems.products.evaluation import Evaluation
from metaweight.problems.recording.recorded_steps import (
    RecordedStep,
    RecordedUpdate,
    Recording,
    optimizer_moment,
)
from metaweight.problems.recording.trajectory import Trajectory
from metaweight.problems.state.random_streams import RandomState
from support.naive import relative_error
from support.reweighting import Declared, Plain, program
from torch import Tensor

from metaweight import (
    Config,
    ConjugateGradient,
    FiniteDifference,
    Hypergradient,
    HypergradientError,
    LowerProblem,
    Neumann,
    Nystrom,
    Penalty,
    Product,
    Status,
    Unroll,
    last_loss,
    lower_view,
)
from metaweight.products import hessian_vector_product, mixed_vector_product


class Identity(Hypergradient):
    """The inverse Hessian taken for the identity."""

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        with lower.evaluation(second_order=True):
            mixed = mixed_vector_product(last_loss(lower), lower.weights, upper_parameters, vector)
        return Product([-t for t in mixed], Status("Identity"))


@pytest.mark.parametrize("kind", [Plain, Declared])
def test_an_own_algorithm_is_a_type(kind) -> None:
    """It is the Neumann series without terms, through a whole program with dropout."""
    found = []
    for method in (Identity(), Neumann(iterations=0)):
        engine = program(kind, config=Config(type=method, gradient_accumulation=2), dropout=0.5)
        torch.default_generator.manual_seed(4)
        for _ in range(4):
            engine.train_step()
        found.append([p.detach().clone() for p in engine.judge.module.parameters()])
    assert engine.classifier.hypergradient_status.method == "Neumann"
    assert relative_error(found[0], found[1]) < 1e-12


def test_the_view_of_a_problem_is_a_lower_problem() -> None:
    engine = program(Declared, config=Config(type=Identity()))
    engine.train_step()
    lower = lower_view(engine.classifier)
    assert lower.name == engine.classifier.name
    assert [id(w) for w in lower.weights] == [id(p) for p in engine.classifier.module.parameters()]
    assert lower.paths == [("judge", engine.classifier.name, "judge")]
    assert not lower.has_problems_below and not lower.has_chosen_weights
    with lower.evaluation():
        loss = last_loss(lower)()
        sample = lower.sample_loss
        step = lower.trajectory.window[0]
        samples = sample.samples(step)
        weights = sample.weights(samples.detached(), step)
    assert loss.ndim == 0
    torch.testing.assert_close((weights * samples.losses).mean(), loss)
    optimizer_step = lower.optimizer_step
    assert optimizer_step.optimizer is engine.classifier.optimizer
    assert not optimizer_step.is_custom


def test_there_is_no_last_loss_before_a_step() -> None:
    engine = program(Declared)
    with pytest.raises(HypergradientError, match="was asked for before it took a step"):
        last_loss(lower_view(engine.classifier))


class QuadraticStep:
    """Plain gradient descent that somebody else takes."""

    name = "quadratic"
    is_custom = False
    clipping, is_scaled, per_loop = 0.0, False, 1
    has_learned_settings = has_learned_start = start_moves = False

    def __init__(self, w: Tensor) -> None:
        self.trained = [w]
        self.optimizer = torch.optim.SGD([w], lr=0.1)


class Quadratic:
    """``L = ½ wᵀAw - wᵀBθ`` as a LowerProblem, without a problem, an engine or a module."""

    name, count = "quadratic", 1
    sample_loss = None
    has_plain_gradients = True
    has_chosen_weights = has_problems_below = False
    number_of_processes = 1
    paths = (("upper", "quadratic", "upper"),)

    def __init__(self, recording: Recording) -> None:
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
        self.a = root @ root.T / 5 + torch.eye(5, dtype=torch.float64)
        self.b = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        self.w = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
        self.theta = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
        self.weights = [self.w]
        self.optimizer_step = QuadraticStep(self.w)
        self.trajectory = Trajectory(recording)
        step = RecordedStep(None, RandomState(torch.device("cpu")))
        self.trajectory.updates.append(RecordedUpdate(steps=[step]))

    def as_given(self) -> Quadratic:
        return self

    def loss(self, step: RecordedStep, instead: Mapping[Tensor, Tensor] | None = None) -> Tensor:
        w = (instead or {}).get(self.w, self.w)
        return 0.5 * w @ self.a @ w - w @ self.b @ self.theta

    def evaluation(self, **settings) -> Evaluation:
        graph = settings.pop("graph", True)
        frozen = () if graph else self.weights
        return Evaluation(self.weights, frozen=frozen, device=torch.device("cpu"), **settings)

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(loss, inputs))

    def refuse_if(self, condition: Tensor, error: Any) -> None:
        if condition:
            raise error()

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)

    def reusable(self, step, also=()):
        return None


EXACT = {
    "conjugate gradients": ConjugateGradient(iterations=5),
    "neumann": Neumann(iterations=500, alpha=0.3),
    "nystrom": Nystrom(rank=5, damping=1e-9),
    "penalty": Penalty(strength=1e3, steps=500, lr=0.3),
}


@pytest.mark.parametrize("name", EXACT)
def test_methods_serve_whatever_is_a_lower_problem(name: str) -> None:
    """``(dw*/dθ)ᵀ v = Bᵀ A⁻¹ v``, to rounding and the damping of Nyström."""
    method = EXACT[name]
    lower = Quadratic(Recording())
    v = torch.linspace(-1, 2, 5, dtype=torch.float64)
    method.check(lower)
    (found,) = method.vjp(lower, [v], [lower.theta]).values
    expected = lower.b.T @ torch.linalg.solve(lower.a, v)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_first_order_methods_serve_it_too() -> None:
    """With the inverse Hessian as the identity, ``Bᵀ v``."""
    lower = Quadratic(Recording())
    v = torch.linspace(-1, 2, 5, dtype=torch.float64)
    for method in (FiniteDifference(), Identity()):
        (found,) = method.vjp(lower, [v], [lower.theta]).values
        torch.testing.assert_close(found, lower.b.T @ v, rtol=1e-9, atol=1e-9)
    hessian = hessian_vector_product(last_loss(lower), lower.weights, [v])
    torch.testing.assert_close(hessian[0], lower.a @ v)


def test_steps_of_it_can_be_unrolled() -> None:
    """``w' = w - η (A w - Bθ)``: one step's derivative is ``η Bᵀ v``."""
    method = Unroll()
    lower = Quadratic(Recording())
    recording = method.recording(lower)
    assert recording.parameters and recording.optimizer and not recording.values
    lower = Quadratic(recording)
    (update,) = lower.trajectory.updates
    lower.w.grad = torch.autograd.grad(lower.loss(update.steps[0]), lower.w)[0]
    update.start = {lower.w: lower.w.detach().clone()}
    optimizer = lower.optimizer_step.optimizer
    update.moment = optimizer_moment(optimizer)
    optimizer.step()
    v = torch.linspace(-1, 2, 5, dtype=torch.float64)
    (found,) = method.vjp(lower, [v], [lower.theta]).values
    torch.testing.assert_close(found, 0.1 * lower.b.T @ v)
