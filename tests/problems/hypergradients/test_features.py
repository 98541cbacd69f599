"""Weights that depend on features of the losses' own pass, against double backward in float64.

The features are hidden states, the network and the rater have dropout, and losses come in three
micro-batches: what a method takes from another micro-batch, another pass, other parameters or other
random numbers is another hypergradient. Exact methods agree to 1e-9, which is rounding; a central
difference of length 1e-4 has an error of order 1e-8, a one-sided one of length 1e-6 of order 1e-6.
"""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import lower_view
from metaweight.problems.persistence.names import Names
from metaweight.problems.persistence.trajectory_state import (
    trajectory_from_plain,
    trajectory_to_plain,
)
from metaweight.problems.recording.trajectory import Trajectory
from support.naive import mixed_product, relative_error
from support.reweighting import Judge
from support.zoo import over
from torch import Tensor, nn

from metaweight import (
    SAMA,
    Config,
    FiniteDifference,
    LossError,
    Neumann,
    Penalty,
    ReweightedProblem,
    Reweighting,
    Unroll,
)
from metaweight.products import reweighting_product

LR = 3.0
Features = namedtuple("Features", ["hidden", "parts"])


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 4)


class Rater(nn.Module):
    """Rates a loss with hidden states, from the batch too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 1))

    def forward(self, losses: Tensor, hidden: Tensor) -> Tensor:
        return self.layers(torch.cat([losses.unsqueeze(1), hidden], 1)).squeeze(1).softmax(0)


def losses_and_hidden(network: Any, batch: Any) -> tuple[Tensor, Tensor]:
    hidden = network.body(batch[0])
    return F.cross_entropy(network.head(hidden), batch[1], reduction="none"), hidden


class Lower(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Any:
        losses, hidden = losses_and_hidden(self.module, batch)
        return losses, Features(hidden, {"labels": [batch[1]], "name": "digits", "none": None})

    def sample_weights(self, losses: Tensor, batch: Any, features: Features) -> Tensor:
        assert type(features) is Features and features.parts["name"] == "digits"
        assert not features.hidden.requires_grad
        assert torch.equal(features.parts["labels"][0], batch[1])
        return self.judge(losses, features.hidden)


class TwoPasses(ReweightedProblem):
    """Computes the hidden states of the present parameters again for the weights."""

    def sample_losses(self, batch: Any) -> Tensor:
        return losses_and_hidden(self.module, batch)[0]

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return self.judge(losses, self.module.body(batch[0]).detach())


def stepped(
    method: Any,
    steps: int = 1,
    kind: Any = Lower,
    dtype: torch.dtype = torch.float64,
    **config: Any,
) -> Any:
    """A lower problem after two loops, its parameters before the last, a vector for it."""
    torch.default_generator.manual_seed(0)
    network, rater = Network().to(dtype), Rater().to(dtype)

    def batches(number: int, size: int) -> list[Any]:
        return [
            (torch.randn(size, 6, dtype=dtype), torch.randint(4, (size,))) for _ in range(number)
        ]

    lower = kind(
        "classifier",
        Config(type=method, gradient_accumulation=3, unroll_steps=steps, **config),
        network,
        torch.optim.SGD(network.parameters(), lr=LR),
        train_data_loader=batches(7, 10),
    )
    top = Judge(
        "judge", None, rater, torch.optim.SGD(rater.parameters(), lr=0.0), None, batches(2, 9)
    )
    top.training_step = lambda batch: losses_and_hidden(lower.module, batch)[0].mean()
    lower.cfg = engine = over(top, lower, train_iters=1)
    lower.step_state.trajectory = Trajectory(method.recording(lower_view(lower)))
    for _ in range(3 * steps):
        engine.train_step()
    before = copy.deepcopy(network.state_dict())
    for _ in range(3 * steps):
        engine.train_step()
    vector = [torch.randn_like(p) for p in lower.meta_trainable_parameters()]
    return lower, before, list(rater.parameters()), vector


def naive(lower: Any, step: Any, *, network: Any = None, detach: bool = True) -> Tensor:
    """The loss of a recorded micro-batch, with nothing but its batch and first random state."""
    step.random.restore()
    network = network or lower.module
    losses, hidden = losses_and_hidden(network, step.batch)
    if isinstance(lower, TwoPasses):
        hidden = network.body(step.batch[0])
    given = (losses.detach(), hidden.detach()) if detach else (losses, hidden)
    return (lower.judge.module(*given) * losses).mean()


def double_backward(
    lower: Any, theta: list[Tensor], vector: list[Tensor], at: Any = None, detach: bool = True
) -> list[Tensor]:
    present = copy.deepcopy(lower.module.state_dict())
    lower.module.load_state_dict(at or present)

    def loss() -> Tensor:
        window = lower.step_state.trajectory.window
        return torch.stack([naive(lower, step, detach=detach) for step in window]).mean()

    found = mixed_product(loss, list(lower.meta_trainable_parameters()), theta, vector)
    lower.module.load_state_dict(present)
    return found


def product(lower: Any, theta: list[Tensor], vector: list[Tensor], method: Any) -> list[Tensor]:
    return method.vjp(lower_view(lower), vector, theta).values


@pytest.mark.parametrize(
    ("method", "tolerance", "detach"),
    [
        (Reweighting(alpha=1e-4), 1e-6, True),
        (Reweighting(derivative="forward_mode"), 1e-9, True),
        (Neumann(iterations=0), 1e-9, True),
        (FiniteDifference(alpha=1e-4), 1e-6, False),
        (SAMA(alpha=1e-4), 1e-6, False),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("kind", "layers"), [(Lower, None), (Lower, ("head",)), (TwoPasses, None)], ids=str
)
def test_after_the_step(
    method: Any, tolerance: float, detach: bool, kind: Any, layers: Any
) -> None:
    if kind is TwoPasses and not detach:
        pytest.skip("it detaches what the differences move")
    lower, before, theta, vector = stepped(method, kind=kind, hypergradient_parameters=layers)
    expected = double_backward(lower, theta, vector, detach=detach)
    assert relative_error(product(lower, theta, vector, method), expected) < tolerance
    assert relative_error(double_backward(lower, theta, vector, before), expected) > 0.01


@pytest.mark.parametrize("kind", [Lower, TwoPasses])
@pytest.mark.parametrize("layers", [None, ("head",)], ids=["all", "head"])
def test_before_the_step(layers: Any, kind: Any) -> None:
    """Losses and what weights compute from the network are those of the same parameters."""
    method = Reweighting(derivative="one_sided", alpha=1e-6)
    lower, before, theta, vector = stepped(method, kind=kind, hypergradient_parameters=layers)
    expected = double_backward(lower, theta, vector, before)
    assert relative_error(product(lower, theta, vector, method), expected) < 1e-4


@pytest.mark.parametrize("kind", [Lower, TwoPasses])
def test_a_penalty(kind: Any) -> None:
    """One short step of each solve: the product times its length, up to that and 1 / strength."""
    method = Penalty(steps=1, strength=1e5, lr=1e-4)
    lower, _, theta, vector = stepped(method, kind=kind)
    expected = [1e-4 * t for t in double_backward(lower, theta, vector)]
    assert relative_error(product(lower, theta, vector, method), expected) < 1e-3


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        (Unroll(), 1e-9),
        (Unroll(memory="full"), 1e-9),
        (Unroll(product="forward_over_reverse"), 1e-9),
        (Unroll(product="finite_difference", alpha=1e-4), 1e-6),
        (Unroll(product="one_sided", alpha=1e-6), 1e-4),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Lower, TwoPasses])
def test_two_unrolled_steps(method: Any, tolerance: float, kind: Any) -> None:
    lower, before, theta, vector = stepped(method, steps=2, kind=kind)
    names = [name for name, _ in lower.module.named_parameters()]
    w = {name: before[name].clone().requires_grad_() for name in names}

    class Called:
        body = staticmethod(lambda x: _call(lower.module.body, w, "body.", x))
        head = staticmethod(lambda x: _call(lower.module.head, w, "head.", x))

    for update in lower.step_state.trajectory.updates:
        loss = torch.stack([naive(lower, step, network=Called) for step in update.steps]).mean()
        gradient = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        w = {name: w[name] - LR * g for name, g in zip(names, gradient, strict=True)}
    for name, p in lower.module.named_parameters():
        torch.testing.assert_close(w[name], p)
    inner = sum((w[name] * v).sum() for name, v in zip(names, vector, strict=True))
    expected = torch.autograd.grad(inner, theta)
    assert relative_error(product(lower, theta, vector, method), expected) < tolerance


def _call(module: nn.Module, w: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    own = {name.removeprefix(prefix): t for name, t in w.items() if name.startswith(prefix)}
    return torch.func.functional_call(module, own, (x,))


def test_recorded_features_are_saved() -> None:
    method = Reweighting(derivative="one_sided", alpha=1e-6)
    lower, _, theta, vector = stepped(method)
    expected = product(lower, theta, vector, method)
    names = Names([lower, lower.judge])
    plain = trajectory_to_plain(lower.step_state.trajectory, names, "here", copy=True)
    lower.step_state.trajectory = trajectory_from_plain(plain, names, torch.device("cpu"))
    own = lower.sample_losses
    # Those of the displaced pass are not used.
    lower.sample_losses = lambda batch: (own(batch)[0], None)
    again = product(lower, theta, vector, method)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("derivative", ["central_difference", "one_sided", "forward_mode"])
def test_is_accurate_in_single_precision(derivative: str) -> None:
    lower, _, _, _ = stepped(Reweighting(derivative=derivative), dtype=torch.float32)
    (report,) = lower.cfg.check_hypergradient()
    assert report.converged.relative_error < 1e-2, str(report)


@pytest.mark.parametrize(
    ("derivative", "tolerance"),
    [("forward_mode", 1e-12), ("central_difference", 1e-6), ("one_sided", 1e-4)],
)
def test_the_product_alone(derivative: str, tolerance: float) -> None:
    """``l = w²``, ``V = θ (l + h)`` with ``h = w³`` constant: ``(l + h) 2 w v``."""
    theta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([1.5, -0.5], dtype=torch.float64)
    v = torch.tensor([0.3, 2.0], dtype=torch.float64)
    found = reweighting_product(
        lambda p: (p[0] ** 2, {"cube": p[0] ** 3}),
        lambda losses, features: theta * (losses + features["cube"]),
        [w],
        [v],
        [theta],
        derivative=derivative,
        alpha=1e-4 if derivative == "central_difference" else 1e-6,
    )
    expected = ((w**2 + w**3) * 2 * w * v).mean()
    torch.testing.assert_close(found[0], expected, rtol=tolerance, atol=0)


class NotTaken(Lower):
    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return losses


class NotReturned(Lower):
    def sample_losses(self, batch: Any) -> Tensor:
        return losses_and_hidden(self.module, batch)[0]


class Odd(Lower):
    def sample_losses(self, batch: Any) -> Any:
        return super().sample_losses(batch)[0], [object()]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (NotTaken, r"'classifier' returned features, but sample_weights has no argument for them"),
        (NotReturned, r"takes more than losses and a batch, but sample_losses returned losses al"),
        (Odd, r"returned features that hold object; return a tensor, or tuples, lists and mapp"),
    ],
)
def test_refusals(kind: Any, said: str) -> None:
    with pytest.raises(LossError, match=said):
        stepped(Reweighting(), kind=kind)


class Keeps(NotReturned):
    """Keeps features on the problem, those of the last micro-batch in the end."""

    def sample_losses(self, batch: Any) -> Tensor:
        losses, self.hidden = losses_and_hidden(self.module, batch)
        return losses

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return self.judge(losses, self.hidden.detach())


def test_warns_of_features_kept_on_the_problem() -> None:
    method = Reweighting(derivative="forward_mode")
    with pytest.warns(
        UserWarning, match=r"'classifier' keeps tensors as self\.hidden.*\(losses, fea"
    ):
        lower, _, theta, vector = stepped(method, kind=Keeps)
    wrong = relative_error(
        product(lower, theta, vector, method), double_backward(lower, theta, vector)
    )
    assert wrong > 0.1


class Attached(TwoPasses):
    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return self.judge(losses, self.module.body(batch[0]))


def test_warns_of_weights_that_the_network_can_change() -> None:
    with pytest.warns(UserWarning, match="weights of problem 'classifier' have a graph") as said:
        stepped(Reweighting(), kind=Attached)
    assert len(said) == 1
    with pytest.warns(UserWarning, match="have a graph to the parameters"):
        stepped(Unroll(memory="full"), kind=Attached)


class Either(NotReturned):
    """Takes features where there are any."""

    def sample_weights(self, losses: Tensor, batch: Any, features: Any = None) -> Tensor:
        assert features is None
        return self.judge(losses, torch.zeros(len(losses), 8, dtype=losses.dtype))


def test_features_may_be_left_out() -> None:
    method = Reweighting(derivative="forward_mode")
    lower, _, theta, vector = stepped(method, kind=Either)
    assert all(t.isfinite().all() for t in product(lower, theta, vector, method))
