"""Early-learning regularisation, sample by sample, and in programs that evaluate a loss again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.learners import network
from support.resuming import CLASSES, assert_resumes_exactly, loader
from support.resuming import network as with_dropout
from support.zoo import Judge, over
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from metaweight import (
    Config,
    ConfigurationError,
    DataError,
    Engine,
    EngineConfig,
    FiniteDifference,
    LossError,
    Neumann,
    Unroll,
)
from metaweight.noise import EarlyLearningClassifier, EarlyLearningRegularisation, WithCriterion

N, C, BETA, LAM = 20, 3, 0.7, 3.0


def criterion(**changes: Any) -> EarlyLearningRegularisation:
    settings = {"num_samples": N, "num_classes": C, "dtype": torch.float64}
    return EarlyLearningRegularisation(**(settings | changes))


def batch(seed: int, size: int = 6, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(size, C, generator=source, dtype=torch.float64)
    y = torch.randint(C, (size,), generator=source)
    return z, y, torch.randperm(N, generator=source)[:size]


def clamped(row: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [min(max(math.exp(z) / total, 1e-4), 1 - 1e-4) for z in row]


def naive(z: Tensor, y: Tensor, places: Tensor, table: list[list[float]]) -> list[float]:
    """The losses of a step, sample by sample in Python's double precision; moves ``table``."""
    losses = []
    for row, label, place in zip(z.tolist(), y.tolist(), places.tolist(), strict=True):
        p = clamped(row)
        q = [each / sum(p) for each in p]
        table[place] = [BETA * t + (1 - BETA) * s for t, s in zip(table[place], q, strict=True)]
        entropy = math.log(sum(math.exp(each) for each in row)) - row[label]
        agreement = sum(a * b for a, b in zip(p, table[place], strict=True))
        losses.append(entropy + LAM * math.log(1 - agreement))
    return losses


@pytest.mark.parametrize("scale", [2.0, 12.0])
def test_losses_and_targets_are_their_formulas_over_several_steps(scale: float) -> None:
    loss, table = criterion(), [[0.0] * C for _ in range(N)]
    for step in range(5):
        z, y, places = batch(step, scale=scale)
        found = loss(z, y, places, reduction="none")
        expected = naive(z, y, places, table)
        # A few dozen float64 operations; 1 - 0.9999 in the logarithm loses four digits.
        assert found.tolist() == pytest.approx(expected, abs=1e-10)
        assert loss.targets.flatten().tolist() == pytest.approx(
            [t for row in table for t in row], abs=1e-14
        )
    if scale > 10:
        probabilities = batch(0, scale=scale)[0].softmax(1)
        assert ((probabilities < 1e-4) | (probabilities > 1 - 1e-4)).any(), "nothing was clamped"


def test_the_gradient_takes_targets_for_constants() -> None:
    z, y, places = batch(1, scale=1.0)  # nothing is clamped
    loss = criterion()
    loss(*batch(0))
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, y, places), z)
    fixed = loss.targets[places]

    def with_fixed_targets(z: Tensor) -> Tensor:
        agreement = (fixed * z.softmax(1)).sum(1)
        return (F.cross_entropy(z, y, reduction="none") + LAM * (1 - agreement).log()).mean()

    torch.testing.assert_close(
        gradient, torch.autograd.grad(with_fixed_targets(z), z)[0], rtol=1e-12, atol=1e-14
    )
    # Central differences of the loss at targets that stay.
    loss.eval()
    assert torch.autograd.gradcheck(lambda z: loss(z, y, places), (z,))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, y, places), (z,))


def test_a_wrong_label_is_outweighed_once_predictions_agree_on_another() -> None:
    # p = (0.9, 0.1), label 1, target p: the gradient by z_0 is p_0 - 0 less the pull to the target.
    p = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    z = p.log().requires_grad_()
    loss = criterion(num_samples=1, num_classes=2).eval()
    loss.targets.copy_(p)
    (gradient,) = torch.autograd.grad(loss(z, [1], [0]), z)
    agreement = 0.82
    by_hand = 0.9 - LAM * 0.9 * (0.9 - agreement) / (1 - agreement)
    assert gradient[0, 0].item() == pytest.approx(by_hand, abs=1e-12)
    assert gradient[0, 0] < 0, "cross-entropy alone has 0.9"


def test_previous_targets_make_a_pass_repeatable() -> None:
    loss, (z, y, places) = criterion(), batch(0)
    loss(*batch(3))
    before = loss.targets[places].clone()
    first = loss(z, y, places, previous=before)
    after = loss.targets.clone()
    again = loss(z, y, places, previous=before)
    assert torch.equal(first, again) and torch.equal(loss.targets, after)
    assert not torch.equal(loss(z, y, places), first)


def test_evaluation_moves_nothing() -> None:
    loss = criterion()
    loss(*batch(0))
    before = loss.targets.clone()
    loss.eval()(*batch(1))
    assert torch.equal(loss.targets, before)


def test_samples_without_a_label_and_overflow_leave_targets_alone() -> None:
    z, y, places = batch(2)
    y[1], z[3, 0] = -1, math.inf
    loss = criterion()
    found = loss(z, y, places, reduction="none")
    assert found[1] == 0 and found[[0, 2, 4, 5]].isfinite().all()
    moved = loss.targets[places].any(1)
    assert moved.tolist() == [True, False, True, False, True, True]
    assert loss.targets.isfinite().all()


def test_half_precision_keeps_targets_in_single() -> None:
    net = WithCriterion(nn.Linear(5, C), criterion(dtype=torch.float32)).to(torch.bfloat16)
    x = torch.ones(6, 5, dtype=torch.bfloat16)
    loss = net.criterion(net(x), torch.zeros(6).long(), torch.arange(6))
    loss.backward()
    assert loss.dtype == net.criterion.targets.dtype == torch.float32
    assert net.network.weight.grad.isfinite().all()


def test_nothing_is_read_back_from_the_device() -> None:
    with FakeTensorMode():
        loss = criterion(dtype=torch.float32)
        z = torch.randn(8, C, requires_grad=True)
        loss(z, torch.randint(0, C, (8,)), torch.arange(8)).backward()


STEPS = 9


def data(seed: int, number: int, first: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(5, 5, generator=source, dtype=torch.float64),
            torch.randint(C, (5,), generator=source),
            torch.arange(5 * i + first, 5 * i + first + 5),
        )
        for i in range(number)
    ]


class Weighed(EarlyLearningClassifier):
    """Its loss times what the problem above returns, 1."""

    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch) * self.upper.module.w


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))


def program(kind: Any, lr: float = 0.0, **config: Any) -> Any:
    net, one = WithCriterion(network(), criterion()), One()
    roll_back = config.pop("roll_back", False)
    low = Weighed(
        "lower",
        Config(type=kind, **config),
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.3),
        train_data_loader=data(1, 4),
    )
    top = Judge("upper", None, one, torch.optim.SGD(one.parameters(), lr), None, data(2, 2))
    return over(top, low, train_iters=STEPS, roll_back=roll_back)


def plain_loop() -> WithCriterion:
    net = WithCriterion(network(), criterion())
    optimizer = torch.optim.SGD(net.parameters(), 0.3)
    for step in range(STEPS):
        x, y, places = data(1, 4)[step % 4]
        optimizer.zero_grad()
        net.criterion(net(x), y, places).backward()
        optimizer.step()
    return net


# A roll-back takes the first of two steps back for good.
@pytest.mark.parametrize(("roll_back", "unroll_steps"), [(False, 1), (False, 2), (True, 1)])
@pytest.mark.parametrize(
    "kind",
    [FiniteDifference(), Neumann(iterations=2, alpha=0.1), Unroll(), Unroll(memory="full")],
    ids=repr,
)
def test_a_bilevel_run_moves_targets_as_a_plain_loop_does(
    kind: Any, roll_back: bool, unroll_steps: int
) -> None:
    run = program(kind, unroll_steps=unroll_steps, roll_back=roll_back)
    run.run()
    expected = plain_loop().state_dict()
    for key, value in run.lower.module.state_dict().items():
        # Rounding of nine float64 steps.
        torch.testing.assert_close(value, expected[key], rtol=1e-11, atol=1e-12, msg=key)


def test_a_batch_has_the_same_loss_again() -> None:
    run = program("darts")
    run.lower.optimizer.param_groups[0]["lr"] = 0.0
    for step in range(5):
        run.train_step()
        after = run.lower.module.criterion.targets.clone()
        base, (x, y, places) = criterion(), data(1, 4)[step % 4]
        if step == 4:
            base(network()(x), y, places)
        expected = base(network()(x), y, places)
        assert torch.equal(run.lower.training_step(run.lower.cur_batch), expected)
        assert torch.equal(run.lower.module.criterion.targets, after)


@pytest.mark.parametrize("product", ["exact", "forward_over_reverse"])
def test_the_hypergradient_is_that_of_the_steps_that_were_taken(product: Any) -> None:
    """Through two steps that draw the same samples, where the second needs the first's targets."""
    run = program(Unroll(product=product), lr=1.0, unroll_steps=2)
    run.lower.set_train_data_loader(data(1, 1))
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    net = network()
    weights = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    table: Tensor = torch.zeros(N, C, dtype=torch.float64)
    x, y, places = data(1, 1)[0]
    for _ in range(2):
        z = torch.func.functional_call(net, weights, (x,))
        p = z.softmax(1)
        table = table.index_copy(0, places, BETA * table[places] + (1 - BETA) * p.detach())
        agreement = (table[places] * p).sum(1)
        losses = F.cross_entropy(z, y, reduction="none") + LAM * (1 - agreement).log()
        found = torch.autograd.grad(
            factor * losses.mean(), list(weights.values()), create_graph=True
        )
        weights = {n: p - 0.3 * g for (n, p), g in zip(weights.items(), found, strict=True)}
    clean = data(2, 2)[0]
    upper = F.cross_entropy(torch.func.functional_call(net, weights, (clean[0],)), clean[1])
    (expected,) = torch.autograd.grad(upper, factor)
    for _ in range(2):
        run.train_step()
    assert run.upper.count == 1
    # Rounding of a dozen float64 products.
    assert 1 - run.upper.module.w.item() == pytest.approx(expected.item(), rel=1e-9)


def test_every_step_resumes_exactly(tmp_path: Path) -> None:
    def build(**more: Any) -> Engine:
        net = WithCriterion(with_dropout(), EarlyLearningRegularisation(12, CLASSES))
        low = EarlyLearningClassifier(
            "lower",
            Config(log_step=1, gradient_accumulation=2),
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), 0.1),
            train_data_loader=loader(12, 1, with_indices=True),
        )
        settings = {"train_iters": 7, "strategy": "cpu", "logger_type": "csv"}
        return Engine([low], EngineConfig(**(settings | more)))

    assert_resumes_exactly(build, tmp_path, [1, 2, 5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples=0, .*at least 1 sample"),
        ({"num_classes": 1}, "num_classes=1, .*2 classes"),
        ({"beta": 1.0}, r"beta=1.0, .*beta in \[0, 1\)"),
        ({"lam": -1.0}, "lam=-1.0.* lam of at least 0"),
        ({"dtype": torch.float16}, "torch.float16.*torch.float32 or"),
        ({"reduction": "max"}, "reduction='max'.*none, mean, sum"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        criterion(**changes)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (None, r"no positions; give batches \(inputs, labels, indices\)"),
        (torch.arange(15, 21), r"num_samples=20\) received indices from 15 to 20.* from 0"),
        (torch.arange(-1, 5), "indices from -1 to 4"),
        (torch.arange(5), r"shape \(5,\) and type torch.int64 for 6 samples; give one integer"),
        (torch.zeros(6), "type torch.float32 for 6 samples"),
        (["a"] * 6, "Sample indices of type list"),
    ],
)
def test_what_are_no_positions_is_refused(indices: Any, message: str) -> None:
    z, y, _ = batch(0)
    with pytest.raises(DataError, match=message):
        criterion()(z, y, indices)


def test_what_does_not_fit_is_refused() -> None:
    z, y, places = batch(0)
    with pytest.raises(LossError, match=r"of 4 classes received .*\(6, 3\); give \(B, 4\)"):
        criterion(num_classes=4)(z, y, places)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ConfigurationError, match=r"'low' received a module without .*WithCriterio"):
        EarlyLearningClassifier("low", module=net, optimizer=optimizer)
    net = WithCriterion(net, criterion())
    low = EarlyLearningClassifier("low", module=net, optimizer=optimizer)
    low.step_state.processes.world = 2
    with pytest.raises(ConfigurationError, match=r"program of 2 processes, .* run it in one"):
        low.build(torch.device("cpu"))
