"""The zeroth-order hypergradient of several problems, of direct parts and of learned starts."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.hypergradients.value import Rollouts
from support.measured_losses import (
    ONE,
    Lower,
    Upper,
    along,
    directions,
    joined,
    lower_problem,
    numbers,
    upper_problem,
)
from support.naive import relative_error
from support.small import Point
from support.zoo import over

from metaweight import (
    Config,
    Engine,
    EngineConfig,
    ImplicitProblem,
    LossError,
    Unroll,
)


def indirect(mode="graph", **kinds):
    """The exact derivative through the lower problem alone, and the direct one."""
    _, whole = joined(upper_problem(), lower_problem(method=Unroll(), **kinds))
    direct = [9 * torch.tensor([0.5, 1.0], dtype=torch.float64) ** 2]
    return [w - d for w, d in zip(whole, direct, strict=True)], direct


def test_a_direct_gradient_comes_from_autograd_and_is_counted_once() -> None:
    through, direct = indirect()
    engine, found = joined(upper_problem(), lower_problem())
    noise = along(through, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, [direct[0] + noise[0]]) < 1e-5


def test_without_a_graph_the_direct_part_is_estimated_too() -> None:
    through, direct = indirect()
    engine, found = joined(upper_problem(mode="no graph"), lower_problem())
    whole = [through[0] + direct[0]]
    expected = along(whole, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, expected) < 1e-5


class Pair(Upper):
    def training_step(self, batch):
        loss = (self.lower.module.w**2).sum() + 2 * (self.second.module.w**3).sum()
        loss = loss + 3 * (self.module.w**3).sum()
        return loss.detach() if self.cfg == "no graph" else loss


def test_two_lower_problems_count_the_direct_part_once() -> None:
    def run(mode, *methods):
        lowers = [
            lower_problem(name=name, method=method)
            for name, method in zip(("lower", "second"), methods, strict=True)
        ]
        return joined(upper_problem(Pair, mode=mode), *lowers)

    direct = 9 * torch.tensor([0.5, 1.0], dtype=torch.float64) ** 2
    _, both = run("graph", Unroll(), Unroll())
    first, _ = indirect()
    second = [both[0] - first[0] - direct]

    engine, found = run("no graph", ONE, ONE)
    one = directions(ONE, engine.lower, engine.upper.module)
    two = directions(ONE, engine.second, engine.upper.module)
    assert not torch.equal(one[0], two[0])
    expected = along([first[0] + direct], one)[0] + along(second, two)[0]
    assert relative_error(found, [expected]) < 1e-5

    engine, mixed = run("graph", ONE, Unroll())
    one = directions(ONE, engine.lower, engine.upper.module)
    expected = along(first, one)[0] + second[0] + direct
    assert relative_error(mixed, [expected]) < 1e-5

    with pytest.raises(LossError, match="'upper' does not depend on any parameter that requires"):
        run("no graph", ONE, Unroll())


def test_upper_accumulation_averages_it() -> None:
    """Two micro-batches of the upper problem after two loops, each scaled by a half."""
    single, found = [], []
    for accumulation, sink in ((1, single), (2, found)):
        upper = upper_problem(mode="no graph", config=Config(gradient_accumulation=accumulation))
        lower = lower_problem()
        engine = over(upper, lower)
        upper.grad_callback = lambda upper=upper, sink=sink: sink.append(
            upper.module.w.grad.clone()
        )
        for _ in range(4):
            engine.train_step()
    torch.testing.assert_close(found[1], (single[0] + single[1]) / 2, rtol=1e-9, atol=0)


def test_other_problems_are_where_they_are_now_when_the_loss_is_measured() -> None:
    """The one below has stepped before each step of the loop; the loss must see its last place."""

    class Feeder(ImplicitProblem):
        def training_step(self, batch):
            return ((self.module.w - 5) ** 2).sum()

    class Fed(Lower):
        def training_step(self, batch):
            return super().training_step(batch) + (self.feeder.module.w * self.module.w).sum()

    class Looks(Upper):
        def training_step(self, batch):
            return (self.lower.module.w * self.feeder.module.w**2).sum()

    def feeder():
        module = Point(0.1, 0.2)
        return Feeder(
            "feeder",
            None,
            module,
            torch.optim.SGD(module.parameters(), 0.1),
            train_data_loader=numbers(0.0),
        )

    _, exact = joined(upper_problem(Looks), lower_problem(Fed, method=Unroll()), below=feeder())
    engine, found = joined(upper_problem(Looks), lower_problem(Fed), below=feeder())
    expected = along(exact, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, expected) < 1e-5


class Shared(Lower):
    def training_step(self, batch):
        return super().training_step(batch) + (self.other.module.w**2 * self.module.w).sum()


class Second(Upper):
    """Comes after the first upper problem and sees where that one has gone."""

    def training_step(self, batch):
        return (self.lower.module.w * self.upper.module.w**2).sum()


def two_upper_problems(method):
    """The first one moves, the same way whatever its gradient, before the second one steps."""
    lower = lower_problem(Shared, method=method)
    upper, other = upper_problem(), upper_problem(Second, name="other")
    engine = Engine(
        [upper, other, lower],
        EngineConfig(strategy="cpu"),
        {"u2l": {upper: [lower], other: [lower]}, "l2u": {lower: [upper, other]}},
    )
    seen = {}
    for problem in (upper, other):
        problem.grad_callback = lambda p=problem: seen.update({p.name: p.module.w.grad.clone()})
    upper.param_callback = lambda: upper.module.w.data.add_(0.7)
    for _ in range(2):
        engine.train_step()
    return engine, seen


def test_two_upper_problems_each_find_their_own() -> None:
    """What the loop recorded of the upper problems must not undo their displacement, and the loss
    must see the first one where it is now."""
    _, exact = two_upper_problems(Unroll())
    engine, found = two_upper_problems(ONE)
    direct = {
        "upper": 9 * torch.tensor([0.5, 1.0], dtype=torch.float64) ** 2,
        "other": torch.zeros(2, dtype=torch.float64),
    }
    for name, part in direct.items():
        e = directions(ONE, engine.lower, getattr(engine, name).module)
        expected = part + along([exact[name] - part], e)[0]
        assert relative_error([found[name]], [expected]) < 1e-5


def test_going_back_takes_the_lower_problem_alone() -> None:
    engine, _ = two_upper_problems(ONE)
    lower, upper, other = (getattr(engine, name).module for name in ("lower", "upper", "other"))
    start = torch.tensor([0.3, -0.4], dtype=torch.float64)
    now, end = upper.w.detach().clone(), lower.w.detach().clone()
    with Rollouts(lower_view(engine.lower), [other.w]) as rollouts:
        rollouts.restore_start()
        assert torch.equal(lower.w, start)
        assert torch.equal(upper.w, now)
    assert torch.equal(lower.w, end)


def test_learned_starts_are_displaced_too() -> None:
    class Started(Lower):
        def initial_parameters(self):
            return {"w": self.upper.module.w.cos()}

    through, direct = indirect(kind=Started)
    engine, found = joined(upper_problem(), lower_problem(Started))
    noise = along(through, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, [direct[0] + noise[0]]) < 1e-5
