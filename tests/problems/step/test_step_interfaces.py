"""Optimizers and schedulers whose ``step`` wants more than a gradient: served as their own loops
serve them, or refused in one sentence when the engine is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.resuming import assert_resumes_exactly, two_levels
from support.small import Inner, Point, bilevel, numbers, problem, single
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from metaweight import SAMA, Config, ConfigurationError, Engine, Unroll


class Decay:
    """A scheduler with the interface of timm's, whose rate is halved with every count."""

    def __init__(self, optimizer: Any, t_in_epochs: bool = True) -> None:
        self.optimizer, self.t_in_epochs = optimizer, t_in_epochs
        self.told: list[tuple[str, int]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"t_in_epochs": self.t_in_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def step(self, epoch: int, metric: float | None = None) -> None:
        self._at("epoch", epoch, self.t_in_epochs)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        self._at("update", num_updates, not self.t_in_epochs)

    def _at(self, kind: str, count: int, counts: bool) -> None:
        self.told.append((kind, count))
        if counts:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.2 * 0.5**count


class Rates(Engine):
    """Keeps the learning rate of its first leaf after every step."""

    def train_step(self) -> None:
        super().train_step()
        self.rates = [*vars(self).get("rates", []), self.chase.optimizer.param_groups[0]["lr"]]


def scheduled(make: Callable[[Any], Any], **settings: Any) -> Any:
    module = Point(0.0)
    optimizer = SGD(module.parameters(), lr=0.2)
    settings = {"data": numbers(1.0, 2.0), **settings}
    return problem(module=module, optimizer=optimizer, scheduler=make(optimizer), **settings)


def test_timms_interface_is_told_updates_and_epochs() -> None:
    lower = scheduled(Decay)
    engine = single(lower, engine=Rates, steps=5)
    engine.run()
    # An epoch has ended when the first batch of the next one is drawn.
    assert [told for told in lower.scheduler.told if told[0] == "epoch"] == [
        ("epoch", 1),
        ("epoch", 2),
    ]
    assert [n for kind, n in lower.scheduler.told if kind == "update"] == [1, 2, 3, 4, 5]
    assert engine.rates == [0.2, 0.2, 0.1, 0.1, 0.05]


def test_timms_schedulers_are_those_of_a_loop_by_hand() -> None:
    timm = pytest.importorskip("timm.scheduler")
    for makes in (
        lambda o: timm.CosineLRScheduler(o, t_initial=8, warmup_t=2, t_in_epochs=False),
        lambda o: timm.StepLRScheduler(o, decay_t=1, decay_rate=0.5, t_in_epochs=True),
    ):
        engine = single(scheduled(makes), engine=Rates, steps=6)
        engine.run()
        by_hand = SGD(Point(0.0).parameters(), lr=0.2)
        scheduler, rates = makes(by_hand), []
        for step in range(6):
            if step and step % 2 == 0:
                scheduler.step(step // 2)
            scheduler.step_update(step + 1)
            rates.append(by_hand.param_groups[0]["lr"])
        assert engine.rates == rates
        assert len(set(rates)) > 2


def test_an_update_is_counted_once_where_a_roll_back_takes_it_again() -> None:
    inner = problem(Inner, "inner", data=numbers(1.0))
    inner.scheduler = Decay(inner.optimizer, t_in_epochs=False)
    bilevel(inner=inner, steps=3, roll_back=True).run()
    assert [n for kind, n in inner.scheduler.told if kind == "update"] == [1, 2, 3]


@pytest.mark.parametrize("t_in_epochs", [True])
def test_counts_go_on_after_a_checkpoint(t_in_epochs: bool, tmp_path: Path) -> None:
    build = two_levels(
        lower={"gradient_accumulation": 2}, scheduler=lambda o: Decay(o, t_in_epochs)
    )
    assert_resumes_exactly(build, tmp_path)


class OwnMetric:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self, metric: float) -> None:
        raise AssertionError


class OwnPlateau(Decay):
    """As ``timm.scheduler.PlateauLRScheduler`` is built."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self.lr_scheduler = ReduceLROnPlateau(optimizer)


@pytest.mark.parametrize("kind", [OwnMetric, OwnPlateau])
def test_a_scheduler_that_wants_something_else_is_refused(kind: Any) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"{kind.__name__}, the scheduler of problem 'chase', wants metric in step\(\); .*"
        "ReduceLROnPlateau.*step_update",
    ):
        single(scheduled(kind))


def test_epochs_are_not_counted_without_a_loader() -> None:
    class Drawn(Inner):
        def get_batch(self) -> Tensor:
            return torch.ones(1, dtype=torch.float64)

    with pytest.raises(ConfigurationError, match=r"Decay, .*'chase', counts epochs.*t_in_epochs"):
        single(drawn(Drawn, Decay))


def drawn(kind: Any, make: Callable[[Any], Any]) -> Any:
    module = Point(0.0)
    optimizer = SGD(module.parameters(), lr=0.2)
    return kind("chase", module=module, optimizer=optimizer, scheduler=make(optimizer))


class SAM(SGD):
    """The interface of the published sharpness-aware minimisation."""

    def first_step(self, zero_grad: bool = False) -> None: ...

    def second_step(self, zero_grad: bool = False) -> None: ...


class GSAM(SGD):
    def set_closure(self, loss: Any, inputs: Any, targets: Any) -> None: ...


class Polyak(SGD):
    def step(self, closure: Any = None, *, loss: Tensor) -> None: ...  # type: ignore[override]


class Lookahead:
    """Slow weights that follow the fast ones every second step (Zhang et al. 2019)."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.steps = optimizer, 0
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.state_dict, self.load_state_dict = optimizer.state_dict, optimizer.load_state_dict
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)
        self.steps += 1
        if self.steps % 2:
            return
        fast = [p for g in self.param_groups for p in g["params"]]
        for slow, p in zip(self.slow, fast, strict=True):
            slow.lerp_(p.detach(), 0.5)
            p.data.copy_(slow)


WANTING: dict[str, tuple[Callable[[Any], Any], str]] = {
    "LBFGS": (torch.optim.LBFGS, "LBFGS, .*'chase', wants closure in"),
    "wrapped": (lambda p: Lookahead(torch.optim.LBFGS(p)), "LBFGS, .*'chase', wants closure in"),
    "SAM": (lambda p: SAM(p, lr=0.1), "SAM, .*wants a second gradient"),
    "GSAM": (lambda p: GSAM(p, lr=0.1), r"GSAM, .*wants a closure \(set_closure\)"),
    "loss": (lambda p: Polyak(p, lr=0.1), "Polyak, .*wants loss in"),
}


@pytest.mark.parametrize(("make", "words"), WANTING.values(), ids=WANTING)
def test_an_optimizer_that_computes_the_loss_again_is_refused(
    make: Callable[[Any], Any], words: str
) -> None:
    module = Point(0.0)
    lower = problem(module=module, optimizer=make(module.parameters()))
    with pytest.raises(ConfigurationError, match=rf"{words}.*custom_optimizer_step"):
        single(lower)
    ready = single(problem())
    with pytest.raises(ConfigurationError, match=words):
        ready.chase.set_optimizer(make(ready.chase.module.parameters()))
    assert isinstance(ready.chase.optimizer, SGD)


def test_a_step_of_ones_own_may_serve_it() -> None:
    class Served(Inner):
        def training_step(self, batch: Any) -> Any:
            return 0.5 * ((self.module() - batch) ** 2).sum()

        def custom_optimizer_step(self) -> None:
            def closure() -> Tensor:
                self.zero_grad()
                loss = self.training_step(self.cur_batch)
                loss.backward()
                return loss

            self.optimizer.step(closure)

    module = Point(0.0)
    optimizer = torch.optim.LBFGS(module.parameters(), line_search_fn="strong_wolfe")
    single(problem(Served, module=module, optimizer=optimizer), steps=2).run()
    # One step of a quasi-Newton method ends at the minimum of a quadratic.
    assert module.w.item() == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["darts", "cg"])
def test_lookahead_works_as_in_a_loop_by_hand(method: str) -> None:
    module = Point(0.0)
    inner = problem(
        Inner,
        "inner",
        module=module,
        optimizer=Lookahead(SGD(module.parameters(), lr=0.1)),
        config=Config(type=method),
    )
    engine = bilevel(inner=inner, steps=4)
    engine.outer.optimizer.param_groups[0]["lr"] = 0.0
    engine.run()
    fast = slow = 0.0
    for step in range(1, 5):
        fast -= 0.1 * (fast - 1.0 + 0.5)
        if step % 2 == 0:
            fast = slow = (slow + fast) / 2
    assert module.w.item() == pytest.approx(fast)


class Averaged(SGD):
    """Trains at one point and is evaluated at the average of all, as schedule-free methods are."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        for group in self.param_groups:
            group["train_mode"] = False

    def train(self) -> None:
        self._exchange(mode=True)

    def eval(self) -> None:
        self._exchange(mode=False)

    def _exchange(self, *, mode: bool) -> None:
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != mode else ():
                other = self.state[p].get("other")
                if other is not None:
                    self.state[p]["other"] = p.detach().clone()
                    p.data.copy_(other)
            group["train_mode"] = mode

    def step(self, closure: Any = None) -> None:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("Not in training mode")
        super().step(closure)
        for p in (p for g in self.param_groups for p in g["params"]):
            state = self.state[p]
            count = state.get("count", 0) + 1
            before = state.get("other", torch.zeros_like(p))
            state["count"], state["other"] = count, before + (p.detach() - before) / count


class Evaluated(Engine):
    """Keeps what validation is made with."""

    def validation(self) -> dict[str, Tensor]:
        return {"w": self.inner.module.w.detach().clone()}


@pytest.mark.parametrize("method", ["darts", "cg", "penalty"])
def test_an_optimizer_with_modes_trains_and_is_evaluated_in_them(method: str) -> None:
    module = Point(0.0)
    optimizer = Averaged(module.parameters(), lr=0.1)
    inner = problem(
        Inner,
        "inner",
        data=numbers(1.0),
        module=module,
        optimizer=optimizer,
        config=Config(type=method),
    )
    seen: list[float] = []

    class Seeing(Evaluated):
        def validation(self) -> dict[str, Tensor]:
            seen.append(self.inner.module.w.item())
            return super().validation()

    engine = bilevel(inner=inner, engine=Seeing, steps=4, valid_step=2)
    engine.outer.optimizer.param_groups[0]["lr"] = 0.0
    engine.run()
    points, w = [], 0.0
    for _ in range(4):
        w -= 0.1 * (w - 1.0 + 0.5)
        points.append(w)
    assert seen == pytest.approx([sum(points[:2]) / 2, sum(points) / 4])
    assert module.w.item() == pytest.approx(points[-1])
    engine.eval()
    assert module.w.item() == pytest.approx(sum(points) / 4)


@pytest.mark.parametrize("method", [Unroll(), SAMA()], ids=["unroll", "sama"])
def test_what_differentiates_the_step_says_that_it_cannot(method: Any) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    module = Point(0.0)
    optimizer = schedulefree.SGDScheduleFree(module.parameters())
    inner = problem(Inner, "inner", module=module, optimizer=optimizer, config=Config(type=method))
    with pytest.raises(ConfigurationError, match="SGDScheduleFree"):
        bilevel(inner=inner)


def test_schedule_free_optimizers() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    module = Point(0.0)
    optimizer = schedulefree.SGDScheduleFree(module.parameters(), lr=0.5)
    lower = problem(module=module, optimizer=optimizer)

    class Looked(Engine):
        def validation(self) -> dict[str, float]:
            assert not optimizer.param_groups[0]["train_mode"]
            return {"w": self.chase.module.w.item()}

    single(lower, engine=Looked, steps=200, valid_step=50).run()
    assert optimizer.param_groups[0]["train_mode"]
    lower.eval()
    assert module.w.item() == pytest.approx(1.0, abs=1e-3)


def test_objects_of_accelerate_work_as_they_are() -> None:
    accelerate = pytest.importorskip("accelerate")
    module = Point(0.0)
    accelerator = accelerate.Accelerator(cpu=True)
    plain = SGD(module.parameters(), lr=0.2)
    optimizer, scheduler = accelerator.prepare(plain, LambdaLR(plain, lambda n: 0.5**n))
    lower = problem(module=module, optimizer=optimizer, scheduler=scheduler)
    engine = single(lower, engine=Rates, steps=3)
    engine.run()
    assert engine.rates == pytest.approx([0.1, 0.05, 0.025])
    assert module.w.item() == pytest.approx(1 - 0.8 * 0.9 * 0.95)
