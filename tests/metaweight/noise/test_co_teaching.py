"""Co-teaching against a program written out by hand, step by step and sample by sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.learners import batches
from support.resuming import assert_resumes_exactly, loader
from support.resuming import network as with_dropout
from support.small import Point
from support.zoo import Judge, over
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from metaweight import Config, ConfigurationError, Engine, EngineConfig, LossError
from metaweight.noise import CoTeachingClassifier, NetworkPair, co_teaching_loss

RATE, RAMP, STEPS = 0.45, 4, 9


def logits(seed: int, size: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, size, 3, generator=source, dtype=torch.float64)
    return one, other, torch.randint(3, (size,), generator=source)


def entropy(row: list[float], label: int) -> float:
    return math.log(sum(math.exp(z) for z in row)) - row[label]


@pytest.mark.parametrize(
    ("kept", "number"), [(1.0, 10), (0.7, 7), (0.55, 5), (0.29, 2), (0.05, 1), (0.0, 1)]
)
def test_each_network_learns_from_what_the_other_finds_easy(kept: float, number: int) -> None:
    for seed in range(5):
        z_1, z_2, y = logits(seed)
        l_1, l_2 = (
            [entropy(row, label) for row, label in zip(z.tolist(), y.tolist(), strict=True)]
            for z in (z_1, z_2)
        )
        by_1 = sorted(range(10), key=l_1.__getitem__)[:number]
        by_2 = sorted(range(10), key=l_2.__getitem__)[:number]
        expected = (sum(l_1[i] for i in by_2) + sum(l_2[i] for i in by_1)) / number
        # Sums of at most 20 float64 numbers.
        assert co_teaching_loss(z_1, z_2, y, kept).item() == pytest.approx(expected, abs=1e-13)
        z_1.requires_grad_()
        z_2.requires_grad_()
        grads = torch.autograd.grad(co_teaching_loss(z_1, z_2, y, kept), (z_1, z_2))
        for gradient, chosen in zip(grads, (by_2, by_1), strict=True):
            assert gradient.any(1).nonzero().squeeze(1).tolist() == sorted(chosen)


def test_whole_numbers_are_not_lost_to_rounding() -> None:
    assert int((1 - 0.9) * 10) == 0, "the case to be looked at"
    one, other, y = logits(0)
    one.requires_grad_()
    for size in (10, 30, 50, 70, 90):
        z_1, z_2, labels = (t.repeat(size // 10, *[1] * (t.ndim - 1)) for t in (one, other, y))
        z_1 = (z_1 + 1e-3 * torch.arange(size * 3).reshape(size, 3).sin()).detach().requires_grad_()
        (g,) = torch.autograd.grad(co_teaching_loss(z_1, z_2, labels, 1 - 0.9), z_1)
        assert int(g.any(1).sum()) == size // 10


def test_samples_without_a_label_are_chosen_last_and_count_nowhere() -> None:
    one, other, y = logits(1)
    y[[2, 5, 7]] = torch.tensor([-1, -100, -1])
    kept = y >= 0
    whole = co_teaching_loss(one[kept], other[kept], y[kept], 1.0)
    for share in (0.7, 0.8, 1.0):
        torch.testing.assert_close(co_teaching_loss(one, other, y, share), whole)
    torch.testing.assert_close(
        co_teaching_loss(one, other, y, 0.3),
        co_teaching_loss(one[kept], other[kept], y[kept], 3 / 7),
    )
    assert co_teaching_loss(one, other, torch.full((10,), -1), 0.5) == 0


def test_a_loss_that_is_not_a_number_is_not_chosen() -> None:
    one, other, y = logits(2)
    one[4, 0] = math.nan
    assert co_teaching_loss(one, other, y, 0.9).isnan(), "the second network may choose it"
    other[4, 0] = math.nan
    assert co_teaching_loss(one, other, y, 0.9).isfinite()


def pair() -> NetworkPair:
    made = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made.append(
                nn.Sequential(
                    nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 3)
                ).double()
            )
    return NetworkPair(*made)


def classifier(kind: Any = CoTeachingClassifier, **changes: Any) -> Any:
    module = changes.pop("module", None) or pair()
    optimizer = changes.pop("optimizer", torch.optim.Adam)
    settings: dict[str, Any] = {
        "noise_rate": RATE,
        "ramp_steps": RAMP,
        "module": module,
        "optimizer": optimizer(module.parameters(), 0.1),
        "train_data_loader": batches(5, 3),
    }
    return kind("lower", **(settings | changes))


def by_hand() -> tuple[nn.Module, nn.Module, list[int]]:
    """The algorithm of the paper with two optimizers, in which samples are sorted in Python."""
    nets = list(pair().children())
    optimizers = [torch.optim.Adam(net.parameters(), 0.1) for net in nets]
    numbers = []
    for step in range(STEPS):
        x, y = batches(5, 3)[step % 5]
        number = math.floor((1 - min(step / RAMP * RATE, RATE)) * len(x))
        numbers.append(number)
        losses = [F.cross_entropy(net(x), y, reduction="none") for net in nets]
        easy = [sorted(range(len(x)), key=each.tolist().__getitem__)[:number] for each in losses]
        for optimizer, each, chosen in zip(optimizers, losses, easy[::-1], strict=True):
            optimizer.zero_grad()
            (sum(each[i] for i in chosen) / number).backward()
            optimizer.step()
    return nets[0], nets[1], numbers


def test_a_run_is_that_of_a_program_written_by_hand() -> None:
    low = classifier()
    run = Engine([low], EngineConfig(train_iters=STEPS, strategy="cpu"))
    torch.default_generator.manual_seed(5)
    run.run()
    torch.default_generator.manual_seed(5)
    first, second, numbers = by_hand()
    assert numbers == [8, 7, 6, 5, 4, 4, 4, 4, 4]
    for found, right in ((low.module.first, first), (low.module.second, second)):
        for key, value in right.state_dict().items():
            # Adam divides by gradients' own sizes: rounding of nine steps, in float64.
            torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-9, atol=1e-9)


def test_the_first_network_is_the_one_that_is_called() -> None:
    low = classifier()
    x = batches(1, 0)[0][0]
    low.module.eval()
    assert torch.equal(low(x), low.module.first(x))
    assert not torch.equal(low(x), low.module.second(x))


class Scaled(CoTeachingClassifier):
    """Its loss times what the problem above has, 1."""

    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch) * self.upper.module.w[0]


@pytest.mark.parametrize("unroll_steps", [1, 3])
def test_the_hypergradient_is_that_of_the_steps_that_were_taken(unroll_steps: int) -> None:
    """Also where the share that is kept falls from one to the next."""
    low = classifier(
        Scaled,
        config=Config(type="unroll", unroll_steps=unroll_steps),
        optimizer=torch.optim.SGD,
        module=NetworkPair(*[net[0] for net in pair().children()]),
    )
    one = Point(1.0)
    top = Judge("upper", None, one, torch.optim.SGD(one.parameters(), 1.0), None, batches(2, 8))
    run = over(top, low, train_iters=unroll_steps)
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    weights = [p.detach().clone().requires_grad_() for p in low.module.parameters()]
    for step in range(unroll_steps):
        x, y = batches(5, 3)[step]
        z = [F.linear(x, *weights[:2]), F.linear(x, *weights[2:])]
        loss = factor * co_teaching_loss(*z, y, low.kept_share(step))
        found = torch.autograd.grad(loss, weights, create_graph=True)
        weights = [w - 0.1 * g for w, g in zip(weights, found, strict=True)]
    x, y = batches(2, 8)[0]
    upper = F.cross_entropy(F.linear(x, *weights[:2]), y)
    (expected,) = torch.autograd.grad(upper, factor)
    run.run()
    assert top.count == 1
    # Rounding of a dozen float64 products.
    assert 1 - one.w.item() == pytest.approx(expected.item(), rel=1e-9)


def test_every_step_resumes_exactly(tmp_path: Path) -> None:
    def build(**more: Any) -> Engine:
        module = NetworkPair(with_dropout(0), with_dropout(1))
        low = CoTeachingClassifier(
            "lower",
            Config(log_step=1, gradient_accumulation=2),
            noise_rate=0.5,
            ramp_steps=5,
            module=module,
            optimizer=torch.optim.Adam(module.parameters(), 0.01),
            train_data_loader=loader(12, 1),
        )
        settings = {"train_iters": 7, "strategy": "cpu", "logger_type": "csv"}
        return Engine([low], EngineConfig(**(settings | more)))

    assert_resumes_exactly(build, tmp_path, [1, 3, 4])


def test_nothing_is_read_back_from_the_device() -> None:
    with FakeTensorMode():
        one, other = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3, requires_grad=True)
        co_teaching_loss(one, other, torch.randint(0, 3, (8,)), 0.6).backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_rate": 1.0}, r"noise_rate=1.0, ramp_steps=4\) .*share in \[0, 1\)"),
        ({"noise_rate": -0.1}, "noise_rate=-0.1"),
        ({"ramp_steps": 0}, "ramp_steps=0.*at least 1"),
        ({"ramp_steps": 2.5}, "ramp_steps=2.5"),
        ({"module": nn.Linear(5, 3)}, "of type Linear; .*NetworkPair"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        classifier(**changes)


def test_networks_that_would_stay_the_same_are_refused() -> None:
    net = nn.Linear(5, 3)
    twin = nn.Linear(5, 3)
    twin.load_state_dict(net.state_dict())
    with pytest.raises(ConfigurationError, match=r"start with the same values.*another seed"):
        NetworkPair(net, twin)
    with pytest.raises(ConfigurationError, match="share parameters"):
        NetworkPair(net, net)
    with pytest.raises(ConfigurationError, match=r"second=None; give a torch.nn.Module"):
        NetworkPair(net, None)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    one, other, y = logits(0)
    with pytest.raises(ConfigurationError, match=r"kept=1.5\) is not a share"):
        co_teaching_loss(one, other, y, 1.5)
    with pytest.raises(LossError, match=r"\(10, 3\) and \(9, 3\); give those of two networks"):
        co_teaching_loss(one, other[:9], y, 0.5)
    with pytest.raises(LossError, match="span 0 to 5 for logits of 3 classes"):
        co_teaching_loss(one, other, torch.where(y == 2, 5, y.clamp_max(0)), 0.5)


def test_no_samples_have_no_loss() -> None:
    first, second, labels = logits(0, 0)
    assert float(co_teaching_loss(first, second, labels, 0.5)) == 0
