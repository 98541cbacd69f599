"""Gradients corrected by a table of batches, against SAGA written out and closed forms."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quadratic import TARGET, error
from support.small import Point, numbers, problem, single
from support.stochastic_quadratic import (
    BATCHES,
    MEAN,
    SIZE,
    Numbered,
    Replacing,
    Upper,
    batches,
    parameters,
    program,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metaweight import (
    SABA,
    Config,
    ConfigurationError,
    Engine,
    GraphError,
    Hook,
    ImplicitProblem,
    Unroll,
    VarianceReduction,
)

# Sums in another order than the oracle's.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class Fit(ImplicitProblem):
    """``½ wᵀA w - cᵀw`` of a batch ``(A, c)``."""

    def training_step(self, batch: Any) -> Tensor:
        hessian, linear = batch
        w = self.module()
        return 0.5 * w @ (hessian @ w) - linear @ w


def saga(data: list[tuple[Tensor, Tensor]], w: Tensor, lr: float, order: list[int]) -> Tensor:
    """SAGA written out: the mean over the table is taken anew in every step."""
    table: dict[int, Tensor] = {}
    for number in order:
        hessian, linear = data[number]
        new = hessian @ w - linear
        step = new
        if number in table:
            step = new - table[number] + torch.stack(list(table.values())).mean(0)
        table[number] = new
        w = w - lr * step
    return w


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_a_run_is_that_of_saga(shuffled: bool) -> None:
    data = [(hessian, linear) for hessian, _, linear in batches(0.3)]
    start = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    loader = Numbered(data) if shuffled else data
    fit = problem(Fit, module=Point(start), data=loader, lr=0.2)
    single(fit, steps=20, hooks=[VarianceReduction()]).run()
    order = (Numbered.order if shuffled else [*range(BATCHES)]) * 5
    found = fit.module().detach()
    torch.testing.assert_close(found, saga(data, start, 0.2, order[:20]), **TOLERANCE)


def solution() -> Tensor:
    """``θ*`` of ``½ |A⁻¹(c - B Σθ) - t|²``."""
    through = torch.linalg.solve(MEAN.hessian, MEAN.mixed)
    reached = torch.linalg.solve(MEAN.hessian, MEAN.linear)
    return torch.linalg.lstsq(through, (reached - TARGET)[:, None]).solution[:, 0]


def test_saba_comes_to_the_solution_at_constant_step_sizes() -> None:
    """Where its own tables alone leave the noise of the batches."""
    found = {}
    for name, hooks in {"with": [VarianceReduction()], "without": []}.items():
        engine = program(SABA(lr=0.15), iterations=800, noise=0.1, lr=0.01, hooks=hooks)
        engine.lower.optimizer.param_groups[0]["lr"] = 0.15
        engine.run()
        found[name] = error(engine.upper.module().detach(), solution())
    assert found["with"] < 1e-6
    assert found["without"] > 1e-3


NOISY = {"noise": 0.1, "lr": 0.05}


def test_only_the_problems_that_are_named() -> None:
    seen: dict[str, list[Tensor]] = {}

    class Seeing(Hook):
        def after_gradient(self, engine: Engine, problem: Any) -> None:
            gradient = torch.cat([p.grad.reshape(-1) for p in problem.parameters()])
            seen.setdefault(problem.name, []).append(gradient)

    hooks = [VarianceReduction(["upper"]), Seeing()]
    # Nothing moves, so that a corrected gradient is the mean over batches.
    program(SABA(), iterations=8, noise=0.1, lr=0.0, hooks=hooks).run()
    lower = seen["lower"]
    assert all(torch.equal(lower[i], lower[i + BATCHES]) for i in range(BATCHES))
    assert not torch.equal(lower[0], lower[1])


def tables_of(engine: Engine) -> dict[str, Any]:
    (hook,) = (h for h in engine.hooks.hooks if isinstance(h, VarianceReduction))
    found: dict[str, Any] = hook.state_dict()["tables"]
    return found


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, every: int) -> None:
    def build(iterations: int) -> Engine:
        hooks = [VarianceReduction()]
        return program(SABA(), iterations=iterations, every=every, hooks=hooks, **NOISY)

    whole, first, resumed = build(20), build(10), build(20)
    whole.run()
    first.run()
    first.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    resumed.run()
    assert torch.equal(parameters(resumed), parameters(whole))
    torch.testing.assert_close(tables_of(resumed), tables_of(whole), rtol=0, atol=0)


class Spoilt(Upper):
    """Its loss is not a number in its eighth step."""

    def training_step(self, batch: Any) -> Tensor:
        loss = super().training_step(batch)
        return loss * torch.nan if self.count == 8 else loss


def test_a_step_that_is_skipped_leaves_the_table() -> None:
    tables = []
    for kind, iterations in ((Spoilt, 8), (Upper, 7)):
        hook = VarianceReduction(["upper"])
        settings = {"upper": kind, "non_finite": "skip", "hooks": [hook]}
        program(SABA(), iterations=iterations, **NOISY, **settings).run()
        tables.append(hook.state_dict())
    torch.testing.assert_close(*tables, rtol=0, atol=0)


def half(values: tuple[float, ...], hook: Hook, steps: int) -> Any:
    """A number in single precision, whose loss is scaled."""
    config = Config(precision="fp16", initial_dynamic_scale=64.0)
    data = [batch.float() for batch in numbers(*values)]
    chase = problem(module=Point(3.0).float(), data=data, config=config, lr=0.0)
    single(chase, steps=steps, hooks=[hook]).run()
    return chase


def test_a_step_that_the_loss_scaler_refuses_leaves_the_table() -> None:
    hook = VarianceReduction()
    half((1.0, 1e38, 2.0), hook, 3)
    entries = hook.state_dict()["tables"]["chase"]["entries"]
    # Unscaled, at two scales.
    assert {key: float(entry[0]) for key, entry in entries.items()} == {"0": 2.0, "2": 1.0}


def test_gradients_are_corrected_by_unscaled_ones() -> None:
    """The gradients at 3 of the batches 1, 2 and 5 have the mean 1/3."""
    seen = []

    class Seeing(Hook):
        def after_gradient(self, engine: Engine, problem: Any) -> None:
            seen.append(float(problem.module.w.grad) / problem.scaler.get_scale())

    class Both(VarianceReduction):
        def after_gradient(self, engine: Engine, problem: Any) -> None:
            super().after_gradient(engine, problem)
            Seeing().after_gradient(engine, problem)

    half((1.0, 2.0, 5.0), Both(), 5)
    assert seen == pytest.approx([2.0, 1.0, -2.0, 1 / 3, 1 / 3])


class Partly(nn.Module):
    """Three numbers, of which a batch may use the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Parameter(torch.tensor(1.0, dtype=torch.float64)) for _ in range(3)
        )


class Uses(ImplicitProblem):
    """``½ first² b``, with ``½ second² b`` where ``b`` is above 1."""

    def training_step(self, batch: Any) -> Tensor:
        net = self.module
        loss = 0.5 * net.first.square() * batch
        return loss + 0.5 * net.second.square() * batch if batch > 1 else loss


def test_parameters_without_a_gradient() -> None:
    """Zero where other batches have one, and none where no batch has."""
    net = Partly()
    uses = problem(
        Uses,
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.5),
        data=[torch.tensor(b, dtype=torch.float64) for b in (0.5, 2.0, 1.0)],
    )
    single(uses, steps=9, hooks=[VarianceReduction()]).run()
    # Weight decay is the optimizer's, and steps on what has a gradient, if it is zero.
    w, table = torch.ones(2, dtype=torch.float64), {}
    for step in range(9):
        number, b = step % 3, (0.5, 2.0, 1.0)[step % 3]
        new = w * torch.tensor([b, b if b > 1 else 0.0], dtype=torch.float64)
        g = new - table[number] + sum(table.values()) / len(table) if number in table else new
        table[number] = new
        has = torch.tensor([1.0, float(step > 0)], dtype=torch.float64)
        w = w - 0.1 * (g + 0.5 * w) * has
    found = torch.stack([net.first, net.second]).detach()
    torch.testing.assert_close(found, w, **TOLERANCE)
    assert net.third.grad is None
    assert net.third == 1.0


class Mixed(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        wide, narrow = self.module
        return 0.5 * ((wide - batch).square() + (narrow.float() - batch).square()).sum()


def test_parameters_of_several_types() -> None:
    """Entries are at least of single precision, so that a mean is not rounded again and again."""
    types = (torch.float64, torch.bfloat16)
    module = nn.ParameterList([nn.Parameter(torch.full((2,), 3.0).to(t)) for t in types])
    seen: list[list[Tensor]] = []

    class Seeing(VarianceReduction):
        def after_gradient(self, engine: Engine, problem: Any) -> None:
            super().after_gradient(engine, problem)
            seen.append([p.grad.clone() for p in problem.module])

    hook = Seeing()
    given = numbers(1.0, 2.0, 4.25)
    single(problem(Mixed, module=module, data=given, lr=0.0), steps=5, hooks=[hook]).run()
    entries = hook.state_dict()["tables"]["chase"]["entries"]
    assert [t.dtype for t in entries["1"]] == [torch.float64, torch.float32]
    assert [t.dtype for t in seen[-1]] == list(types)
    torch.testing.assert_close(seen[-1][0], torch.full((2,), 1.75 / 3, dtype=torch.float64))
    # The correction of two numbers in bfloat16 is that of exact ones, rounded once.
    assert torch.equal(seen[-1][1], torch.full((2,), 1.75 / 3).bfloat16())


class Looks(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * self.module(batch).square().sum()


def test_sparse_gradients_become_dense() -> None:
    found = []
    for sparse in (False, True):
        net = nn.Embedding(4, 2, sparse=sparse, dtype=torch.float64)
        with torch.no_grad():
            net.weight.copy_(torch.arange(8.0).reshape(4, 2))
        data = [torch.tensor([0, 1]), torch.tensor([1, 3])]
        looks = problem(Looks, module=net, data=data)
        single(looks, steps=6, hooks=[VarianceReduction()]).run()
        found.append(net.weight.detach())
    torch.testing.assert_close(found[0], found[1], **TOLERANCE)


def test_another_loader_starts_another_table(tmp_path: Path) -> None:
    """Also where a run was saved between the two."""

    def build(iterations: int) -> Engine:
        hooks = [VarianceReduction(), Replacing("lower", batches(0.1)[:2], 10)]
        return program(SABA(), iterations=iterations, hooks=hooks, **NOISY)

    class Resumed(VarianceReduction):
        """Gives the loader again that a run was saved with."""

        def state_loaded(self, engine: Engine) -> None:
            engine.lower.set_train_data_loader(batches(0.1)[:2])

    whole, first = build(20), build(10)
    whole.run()
    entries = {name: set(table["entries"]) for name, table in tables_of(whole).items()}
    assert entries == {"lower": {"0", "1"}, "upper": {"0", "1", "2", "3"}}
    first.run()
    first.save(tmp_path / "state.pt")
    Resumed.__name__ = "VarianceReduction"
    resumed = program(SABA(), iterations=20, hooks=[Resumed()], **NOISY)
    resumed.load(tmp_path / "state.pt")
    resumed.run()
    assert torch.equal(parameters(resumed), parameters(whole))


def test_other_parameters_start_another_table() -> None:
    class Freezing(Hook):
        def iteration_end(self, engine: Engine) -> None:
            if engine.global_step == 5:
                next(engine.lower.module.parameters()).requires_grad_(False)

    hook = VarianceReduction()
    program(SABA(), iterations=7, hooks=[hook, Freezing()], **NOISY).run()
    table = hook.state_dict()["tables"]["lower"]
    assert set(table["entries"]) == {"1", "2"}
    assert len(table["mean"]) == 2


def test_of_an_unrolled_problem_it_says_what_is_not_seen() -> None:
    for named, said in ((["upper"], 0), (["lower"], 1)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            program(Unroll(), hooks=[VarianceReduction(named)])
        expected = "VarianceReduction.after_gradient may change the steps of problem 'lower'"
        assert len([w for w in found if expected in str(w.message)]) == said


SHUFFLED = DataLoader([torch.zeros(6).double()] * 4, batch_size=None, shuffle=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upper_loader": SHUFFLED}, "'upper' has a loader of type DataLoader that"),
        (
            {"accumulation": 2},
            r"'upper' accumulates 2 micro-batches in a step. Give it whole batches, with Conf",
        ),
        ({"roll_back": True}, r"roll_back=True\) takes the last step of problem 'lower' again"),
    ],
)
def test_what_cannot_be_corrected_is_refused(settings: dict[str, Any], message: str) -> None:
    engine = program("soba", hooks=[VarianceReduction()], **settings)
    with pytest.raises(ConfigurationError, match=f"{message}.*name other problems"):
        engine.run()
    # Other problems can be.
    named = "lower" if "roll_back" not in settings else "upper"
    program("soba", hooks=[VarianceReduction([named])], **settings).run()


def test_a_shuffling_loader_is_refused_during_a_run_too() -> None:
    hooks = [VarianceReduction(), Replacing("upper", SHUFFLED, 5)]
    engine = program("soba", iterations=7, hooks=hooks, **NOISY)
    with pytest.raises(ConfigurationError, match="'upper' has a loader of type DataLoader that"):
        engine.run()


def test_an_unknown_problem_is_refused() -> None:
    engine = program(SABA(), hooks=[VarianceReduction(["lower", "net"])])
    with pytest.raises(GraphError, match=r"'net', that is not among .* \(upper, lower\)"):
        engine.run()
