"""The penalty methods against closed forms and dense implicit differentiation, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import lower_view
from support.naive import hessian_matrix, mixed_product, relative_error
from support.reweighting import Declared, program
from support.small import Point
from support.unrolled import Setting, engine_gradient
from support.zoo import NumberJudge, WeighedNumber, over
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaweight import (
    Config,
    ConfigurationError,
    HypergradientError,
    ImplicitProblem,
    Neumann,
    Penalty,
    Unroll,
)

D = 7


def engine_of(lower_class, upper_class, method, low, up, data, lr=0.1, **config):
    lower = lower_class(
        "lower",
        Config(type=method, **config),
        low,
        torch.optim.SGD(low.parameters(), lr),
        train_data_loader=data,
    )
    upper = upper_class(
        "upper", None, up, torch.optim.SGD(up.parameters(), 1.0), train_data_loader=data
    )
    return over(upper, lower, train_iters=1)


def quadratic(method, sign=1.0, accumulation=1):
    """``L = ½ wᵀ A w - wᵀ B θ``: ``(dw*/dθ)ᵀ v = Bᵀ A⁻¹ v`` exactly.

    The batch is added to ``A``'s diagonal; over a window its mean is.
    """
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    a = sign * (root @ root.T / D + torch.eye(D, dtype=torch.float64))
    b = torch.randn(D, 3, generator=generator, dtype=torch.float64)
    v = torch.randn(D, generator=generator, dtype=torch.float64)
    extra = [torch.tensor(0.2 * i, dtype=torch.float64) for i in range(accumulation)]

    class Lower(ImplicitProblem):
        def training_step(self, batch):
            w = self.module.w
            return 0.5 * (w @ a @ w + batch * w @ w) - w @ b @ self.upper.module.w

    class Upper(ImplicitProblem):
        def training_step(self, batch):
            return self.lower.module.w @ v

    low, up = Point(torch.zeros(D).double()), Point(torch.ones(3).double())
    engine = engine_of(
        Lower, Upper, method, low, up, extra, lr=0.2, gradient_accumulation=accumulation
    )
    for _ in range(accumulation):
        engine.train_step()
    mean = a + torch.stack(extra).mean() * torch.eye(D, dtype=torch.float64)
    return torch.ones(3).double() - up.w.detach(), mean, b, v, engine.lower.hypergradient_status


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_f2sa_on_a_quadratic_is_its_neumann_series(steps, strength, accumulation) -> None:
    """Whatever the strength; ``1e-9`` is rounding of 1e-16 over a displacement of 1e-2 / steps."""
    method = Penalty(strength=strength, steps=steps, lr=0.2)
    found, a, b, v, _ = quadratic(method, accumulation=accumulation)
    shrink = torch.eye(D, dtype=torch.float64) - 0.2 * a
    series = 0.2 * sum(torch.linalg.matrix_power(shrink, k) @ v for k in range(steps))
    torch.testing.assert_close(found, b.T @ series, rtol=1e-9, atol=1e-11)


def test_the_error_falls_with_the_steps_as_gradient_descent_converges() -> None:
    """By ``1 - lr λ_min`` a step once the slowest direction is what is left."""
    errors, residuals = [], []
    for steps in (30, 40):
        found, a, b, v, status = quadratic(Penalty(strength=1.0, steps=steps, lr=0.2))
        errors.append(relative_error([found], [b.T @ torch.linalg.solve(a, v)]))
        residuals.append(float(status.residual))
    rate = 1 - 0.2 * float(torch.linalg.eigvalsh(a)[0])
    print(f"errors {errors}, residuals {residuals}, predicted ratio {rate**10:.2e}")
    assert errors[1] / errors[0] == pytest.approx(rate**10, rel=0.1)
    assert residuals[1] / residuals[0] == pytest.approx(rate**10, rel=0.1)


def test_momentum_gets_there_sooner() -> None:
    errors = []
    for momentum in (0.0, 0.5):
        method = Penalty(strength=1.0, steps=25, lr=0.2, momentum=momentum)
        found, a, b, v, _ = quadratic(method)
        errors.append(relative_error([found], [b.T @ torch.linalg.solve(a, v)]))
    assert errors[1] < 0.1 * errors[0]


def test_the_residual_is_that_of_the_linear_system() -> None:
    method = Penalty(strength=1.0, steps=4, lr=0.2)
    _, a, _, v, status = quadratic(method)
    shrink = torch.eye(D, dtype=torch.float64) - 0.2 * a
    solved = 0.2 * sum(torch.linalg.matrix_power(shrink, k) @ v for k in range(4))
    expected = (a @ solved - v).norm() / v.norm()
    torch.testing.assert_close(status.residual, expected, rtol=1e-9, atol=0)
    assert status.iterations == 4
    _, _, _, _, diverging = quadratic(Penalty(steps=10, lr=2.0))
    assert float(diverging.residual) > 1


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 1), (100.0, 30)])
def test_bome_on_a_quadratic_is_the_best_multiple_of_the_vector(strength, steps) -> None:
    """``c = <v, Av> / ||Av||²`` is where ``||c A v - v||`` is least, seen on a grid."""
    found, a, b, v, status = quadratic(Penalty(strength=strength, steps=steps, form="bome"))
    bent = a @ v
    c = torch.dot(v, bent) / torch.dot(bent, bent)
    torch.testing.assert_close(found, b.T @ (c * v), rtol=1e-9, atol=1e-11)
    grid = torch.linspace(0, 2, 2001, dtype=torch.float64) * c
    best = grid[torch.argmin((grid[:, None] * bent - v).norm(dim=1))]
    torch.testing.assert_close(best, c, rtol=1e-9, atol=0)
    torch.testing.assert_close(status.residual, (c * bent - v).norm() / v.norm())


def test_bome_does_not_push_the_gap_open_where_the_loss_curves_down() -> None:
    found, *_ = quadratic(Penalty(steps=1, form="bome"), sign=-1.0)
    assert torch.equal(found, torch.zeros(3).double())


def regression(method):
    """Logistic regression with a learned penalty per feature, and its dense hypergradient."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(4, generator=generator, dtype=torch.float64) > 0).double()

    class Lower(ImplicitProblem):
        def training_step(self, batch):
            w = self.module.w
            penalty = (self.upper.module.w.exp() * w**2).sum()
            return F.binary_cross_entropy_with_logits(x @ w, y) + 0.1 * penalty

    class Upper(ImplicitProblem):
        def training_step(self, batch):
            return (self.lower.module.w**3).sum()

    low, up = Point(torch.zeros(4).double()), Point(torch.zeros(4).double())
    engine = engine_of(Lower, Upper, Neumann(), low, up, [torch.zeros(1)])
    engine.run()
    up.w.data.zero_()
    lower, vector = engine.lower, [torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)]
    found = method.vjp(lower_view(lower), vector, [up.w]).values
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(lower.training_step(None), [low.w])
        low.w.data.sub_(gradient, alpha=1.0)
    hessian = hessian_matrix(lambda: lower.training_step(None), [low.w])
    solved = torch.linalg.solve(hessian, vector[0])
    return found, mixed_product(lambda: lower.training_step(None), [low.w], [up.w], [solved])


def test_f2sa_solved_out_converges_to_dense_implicit_differentiation_as_one_over_strength() -> None:
    """The reference is at the minimum, though the lower problem has taken one step only.

    ``1 / strength`` bounds the displacement; the error is of its first order, so that ten times the
    strength leaves a tenth of it.
    """
    errors = []
    for strength in (1.0, 10.0):
        errors.append(relative_error(*regression(Penalty(strength=strength, steps=400, lr=1.0))))
    print(f"relative errors at strength 1, 10: {errors}")
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_declared_loss_by_hand(accumulation: int) -> None:
    """``l_i = ½ (w - t_i)²``, ``V = sigmoid(θ0 + θ1 l)``: weights stay those of the present ``w``.

    At strength 1 the two solves end so far apart that weights that moved would be seen.
    """

    targets = torch.tensor([[1.0, -3.0], [2.0, 0.5]], dtype=torch.float64)[:accumulation]
    low, up = Point(torch.zeros(1).double()), Point(torch.tensor([0.3, -0.2]).double())
    theta = up.w.detach().clone().requires_grad_()
    classifier = WeighedNumber(
        "classifier",
        Config(type=Penalty(strength=1.0, steps=2, lr=0.5), gradient_accumulation=accumulation),
        low,
        torch.optim.SGD(low.parameters(), lr=0.1),
        train_data_loader=list(targets),
    )
    judge = NumberJudge(
        "judge", None, up, torch.optim.SGD(up.parameters(), lr=1.0), train_data_loader=[0]
    )
    over(judge, classifier, train_iters=accumulation).run()

    w = low.w.detach()[0]
    v = w - 2
    losses = 0.5 * (w - targets) ** 2
    weights = torch.sigmoid(theta[0] + theta[1] * losses)
    rho, held = v.abs() * 0.5 * 2, weights.detach()
    z = y = w
    for _ in range(2):
        z = z - 0.5 * (held * (z - targets)).mean()
        y = y - 0.5 * ((held * (y - targets)).mean() + v / rho)
    change = rho * 0.5 * ((y - targets) ** 2 - (z - targets) ** 2)
    (expected,) = torch.autograd.grad((weights * change).mean(), theta)
    torch.testing.assert_close(theta.detach() - up.w.detach(), expected, rtol=1e-9, atol=0)


def test_a_declared_loss_keeps_its_weights_held() -> None:
    """Against dense implicit differentiation at the present parameters that respects ``detach``.

    The weighted loss is not quadratic and the network not at a minimum, so few steps are compared
    with their own Neumann series; what is left is O(1 / strength).
    """
    engine = program(config=Config(gradient_accumulation=2), dropout=0.3, extra=True)
    for _ in range(4):
        engine.train_step()
    classifier, theta = engine.classifier, list(engine.judge.module.parameters())
    weights = list(classifier.module.parameters())
    generator = torch.Generator().manual_seed(2)
    vector = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]

    # One step of z from w, and then the series about where it is: with steps=1 the series is v.
    expected_at = Penalty(strength=1e6, steps=1, lr=1e-9)
    found = expected_at.vjp(lower_view(classifier), vector, theta).values

    def loss():
        losses = []
        for step in classifier.step_state.trajectory.window:
            step.random.restore()
            losses.append(classifier.training_step(step.batch))
        return torch.stack(losses).mean()

    expected = mixed_product(loss, weights, theta, vector)
    assert relative_error([f / 1e-9 for f in found], expected) < 1e-5

    # Two steps bend: lr (2 - lr H) v, with the Hessian of the held loss.
    two = Penalty(strength=1e6, steps=2, lr=1e-4).vjp(lower_view(classifier), vector, theta).values
    hessian = hessian_matrix(loss, weights)
    flat = torch.cat([v.reshape(-1) for v in vector])
    series = 1e-4 * (2 * flat - 1e-4 * hessian @ flat)
    pieces = series.split([w.numel() for w in weights])
    solved = [s.reshape(w.shape) for s, w in zip(pieces, weights, strict=True)]
    assert relative_error(two, mixed_product(loss, weights, theta, solved)) < 1e-3


class Once(torch.autograd.Function):
    """A tanh whose backward pass refuses to be differentiated."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("a second derivative was asked for")
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class Activation(torch.nn.Module):
    def forward(self, x):
        return Once.apply(x)


@pytest.mark.parametrize("form", ["f2sa", "bome"])
def test_no_second_derivative_is_taken(form: str) -> None:
    method = Penalty(steps=3, form=form)
    engine = program(Declared, config=Config(type=method))
    engine.classifier.module[2] = Activation()
    engine.run()
    classifier, theta = engine.classifier, list(engine.judge.module.parameters())
    vector = [
        torch.linspace(-1, 2, p.numel(), dtype=p.dtype).reshape(p.shape)
        for p in classifier.module.parameters()
    ]
    with pytest.raises(RuntimeError, match="a second derivative was asked for"):
        mixed_product(
            lambda: classifier.training_step(classifier.step_state.trajectory.window[0].batch),
            list(classifier.module.parameters()),
            theta,
            vector,
        )
    actual = method.vjp(lower_view(classifier), vector, theta).values
    classifier.module[2] = torch.nn.Tanh()
    expected = method.vjp(lower_view(classifier), vector, theta).values
    assert sum(float(e.norm()) for e in expected) > 1e-3
    assert relative_error(actual, expected) < 1e-9


def test_goes_with_fused_attention() -> None:
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(4, 12)

        def forward(self, x):
            parts = [t.reshape(2, 1, 5, 4) for t in self.project(x).chunk(3, -1)]
            return F.scaled_dot_product_attention(*parts)

    class Lower(ImplicitProblem):
        def training_step(self, batch):
            return (self.module(batch) ** 2).mean() * self.upper.module.w.exp().sum()

    class Upper(ImplicitProblem):
        def training_step(self, batch):
            return self.lower.module(batch).mean()

    torch.default_generator.manual_seed(0)
    batch = torch.randn(2, 5, 4)
    up = Point(torch.zeros(1))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        engine = engine_of(Lower, Upper, Penalty(steps=3), Attention(), up, [batch])
        engine.run()
    assert float(up.w.detach().abs()) > 0


def test_the_learning_rates_of_the_lower_problem_are_the_default() -> None:
    """One per group: ``L = ½ a w² - θ w`` in each has the series ``Σ_k rate (1 - rate a)^k``."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
            self.two = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    class Lower(ImplicitProblem):
        def training_step(self, batch):
            one, two = self.module.one, self.module.two
            theta = self.upper.module.w
            return (0.5 * one**2 + 1.5 * two**2).sum() - theta[0] * one.sum() - theta[1] * two.sum()

    class Upper(ImplicitProblem):
        def training_step(self, batch):
            return self.lower.module.one.sum() + 2 * self.lower.module.two.sum()

    up = Point(torch.zeros(2).double())
    engine = engine_of(Lower, Upper, Penalty(steps=3), Two(), up, [torch.zeros(1)])
    low = engine.lower.module
    groups = [{"params": [low.one], "lr": 0.1}, {"params": [low.two], "lr": 0.2}]
    engine.lower.optimizer = torch.optim.SGD(groups, lr=1.0)
    engine.run()
    expected = [
        v * sum(rate * (1 - rate * a) ** k for k in range(3))
        for v, rate, a in ((1.0, 0.1, 1.0), (2.0, 0.2, 3.0))
    ]
    assert (-up.w.detach()).tolist() == pytest.approx(expected, rel=1e-9)


def test_a_diverging_solve_is_refused() -> None:
    with pytest.raises(
        HypergradientError, match=r"Penalty through problem 'lower' is not finite; lower lr"
    ):
        quadratic(Penalty(steps=900, lr=50.0))


def test_a_rate_of_zero_is_refused() -> None:
    engine = program(config=Config(type=Penalty()), lr=0.0)
    with pytest.raises(HypergradientError, match=r"'classifier', which is now 0.0; give Penalty"):
        engine.run()


def test_a_problem_without_a_rate_is_refused() -> None:
    class Lower(ImplicitProblem):
        def training_step(self, batch):
            return (self.module.w * self.upper.module.w).sum()

        def custom_optimizer_step(self):
            pass

    class Upper(ImplicitProblem):
        def training_step(self, batch):
            return self.lower.module.w.sum()

    def build(method):
        low, up = Point(torch.ones(1)), Point(torch.ones(1))
        lower = Lower("lower", Config(type=method), low, train_data_loader=[0])
        upper = Upper(
            "upper", None, up, torch.optim.SGD(up.parameters(), 0.1), train_data_loader=[0]
        )
        return over(upper, lower)

    with pytest.raises(ConfigurationError, match=r"'lower'.*no optimizer.*give Penalty\(lr="):
        build(Penalty())
    build(Penalty(lr=0.1))


def test_names_stand_for_it_and_for_one_unrolled_step() -> None:
    class Lower(ImplicitProblem):
        pass

    assert Lower("lower", Config(type="penalty")).hypergradient == Penalty()
    assert Lower("lower", Config(type="t1t2")).hypergradient == Unroll(steps=1)
    setting = Setting(settings={"lr": 0.1, "momentum": 0.9}, steps=3)
    by_name = engine_gradient(setting, "t1t2")
    one_step = engine_gradient(setting, Unroll(steps=1))
    whole = engine_gradient(setting, Unroll())
    assert all(torch.equal(a, b) for a, b in zip(by_name, one_step, strict=True))
    assert relative_error(by_name, whole) > 1e-2
