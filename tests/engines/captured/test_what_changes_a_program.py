"""What changes a captured program from outside its steps: errors, callbacks, validations.

As by Python to 1e-12, which leaves room for forty steps' roundings, or refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaweight import CheckpointError, Config, ConfigurationError, Engine, ImplicitProblem

CAPTURES: dict[str, dict[str, Any]] = {
    "one": {"capture": "replay"},
    "four": {"capture": "replay", "capture_iterations": 4},
}


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.linspace(0.5, 1, 3, dtype=torch.float64))


class Inner(ImplicitProblem):
    scale = 1.0

    def training_step(self, batch: Any) -> Tensor:
        return self.scale * ((self.module.x - self.outer.module.x * batch) ** 2).sum()


class Outer(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return ((self.inner.module.x - batch) ** 2).sum()


def vectors(number: int, seed: int) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(3, generator=draw, dtype=torch.float64) for _ in range(number)]


def program(
    inner: type[ImplicitProblem] = Inner,
    outer: type[ImplicitProblem] = Outer,
    *,
    engine: type[Engine] = Engine,
    below: Any = None,
    above: Any = None,
    **settings: Any,
) -> Engine:
    modules = {"inner": Point(), "outer": Point()}
    lower = inner(
        "inner",
        Config(type="darts"),
        module=modules["inner"],
        optimizer=torch.optim.SGD(modules["inner"].parameters(), 0.1, momentum=0.9),
        train_data_loader=vectors(7, 1) if below is None else below,
    )
    upper = outer(
        "outer",
        module=modules["outer"],
        optimizer=torch.optim.Adam(modules["outer"].parameters(), 0.01),
        train_data_loader=vectors(5, 2) if above is None else above,
    )
    given = {"train_iters": 42, "progress": False, "valid_step": 1000, **settings}
    return engine.bilevel(upper, lower, **given)


def seen(engine: Engine) -> tuple[list[int], list[Tensor]]:
    counts = [engine.global_step, engine.run_state.iteration, *(p.count for p in engine.problems)]
    return counts, [p.module.x.detach().clone() for p in engine.problems]


def assert_same(found: Engine, expected: Engine) -> None:
    (counts, points), (others, theirs) = seen(found), seen(expected)
    assert counts == others
    for a, b in zip(points, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class OfTwo(Outer):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch[0])


class OfParameters(Outer):
    def get_batch(self) -> Any:
        return self.inner.module.x


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "objects in an upper batch": (
        {"outer": OfTwo, "above": [(t, frozenset([1])) for t in vectors(5, 2)]},
        r"takes batches of tensors, numbers and text .* received one with a frozenset",
    ),
    "an upper batch that is a parameter": ({"outer": OfParameters}, "computes with parameters"),
}


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("name", REFUSED)
def test_the_last_batch_of_an_iteration_is_refused_as_others_are(name: str, capture: str) -> None:
    settings, said = REFUSED[name]
    engine = program(**settings, **CAPTURES[capture])
    with pytest.raises(ConfigurationError, match=said):
        engine.run()
    assert engine.global_step == engine.run_state.iteration == 2


class Fails(Inner):
    """Fails once, at the batch that is marked."""

    failed = False

    def training_step(self, batch: Any) -> Tensor:
        if batch.dtype is torch.float32 and not self.failed:
            self.failed = True
            raise ValueError("A bad sample.")
        return super().training_step(batch.double())


@pytest.mark.parametrize("at", [10, 11, 12, 13, 14])
@pytest.mark.parametrize("capture", CAPTURES)
def test_after_an_error_of_a_step_the_next_batches_are_taken(
    capture: str, at: int, tmp_path: Path
) -> None:
    engines = []
    for settings in ({}, CAPTURES[capture]):
        below = vectors(60, 1)
        below[at] = below[at].float()
        engine = program(Fails, below=below, **settings)
        with pytest.raises(ValueError, match="A bad sample"):
            engine.run()
        engines.append(engine)
    plain, captured = engines
    assert_same(captured, plain)
    assert captured.holds_batches
    with pytest.raises(CheckpointError, match="batches had been drawn that no checkpoint holds"):
        captured.save(tmp_path / "never")
    assert not (tmp_path / "never").exists()
    for engine in engines:
        engine.run()
    assert_same(captured, plain)
    assert not captured.holds_batches
    captured.save(tmp_path / "saved")


def test_what_was_drawn_is_dropped_where_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    engines = []
    for settings in ({}, CAPTURES["four"]):
        below = vectors(60, 1)
        below[12] = below[12].float()
        engine = program(Fails, below=below, **settings)
        engine.train_iters = 8
        engine.run()
        engine.save(tmp_path / "eight")
        engine.train_iters = 42
        with pytest.raises(ValueError, match="A bad sample"):
            engine.run(resume=tmp_path / "eight")
        engine.load(tmp_path / "eight")
        engine.run()
        engines.append(engine)
    assert_same(engines[1], engines[0])


class ByTable(Inner):
    """Draws the sample whose entry in a table, which its steps write, is largest."""

    table: Tensor
    samples: Tensor

    def get_batch(self) -> Any:
        number = self.table.argmax()
        return self.samples[number], number

    def training_step(self, batch: Any) -> Tensor:
        loss = super().training_step(batch[0])
        with torch.no_grad():
            self.table.mul_(1.1).scatter_(0, batch[1].view(1), loss.detach().view(1) / 10)
        return loss


def test_batches_that_are_made_of_what_steps_write_are_refused() -> None:
    engine = program(ByTable, **CAPTURES["four"])
    engine.inner.table = torch.linspace(1, 2, 6, dtype=torch.float64)
    engine.inner.samples = torch.stack(vectors(6, 1))
    with pytest.raises(ConfigurationError, match="or with other tensors that these steps change"):
        engine.run()


class Seldom(Inner):
    engine: Any

    def epoch_callback(self) -> None:
        if self.epoch_counter[0] == 2:
            self.engine.upper_update_every(self, 2)


class OtherMomentum(Inner):
    def epoch_callback(self) -> None:
        if self.epoch_counter[0] == 3:
            self.optimizer.param_groups[0]["momentum"] = 0.1


class OtherScale(Inner):
    def epoch_callback(self) -> None:
        self.scale = 0.9 * self.scale


def test_the_end_of_an_epoch_may_not_change_the_schedule() -> None:
    engine = program(Seldom, **CAPTURES["one"])
    engine.inner.engine = engine
    with pytest.raises(ConfigurationError, match="the end of an epoch has changed when upper prob"):
        engine.run()


@pytest.mark.parametrize("kind", [OtherMomentum, OtherScale])
def test_the_end_of_an_epoch_may_change_a_program(kind: type[Inner]) -> None:
    engines = []
    for settings in ({}, CAPTURES["one"]):
        engine = program(kind, **settings)
        engine.run()
        engines.append(engine)
    assert_same(engines[1], engines[0])
    assert engines[1]._captured._recorded is not None


class Validated(Engine):
    def validation(self) -> dict[str, float]:
        self.inner.scale *= 0.8
        return {"loss": 1.0}


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_validation_may_change_a_program(capture: str) -> None:
    engines = []
    for settings in ({}, CAPTURES[capture]):
        engine = program(engine=Validated, **{**settings, "valid_step": 16, "train_iters": 60})
        engine.run()
        engines.append(engine)
    assert_same(engines[1], engines[0])


class Stepped(Engine):
    def train_step(self) -> None:
        super().train_step()
        if self.global_step == 20:
            self.stop("Enough.")


def test_another_train_step_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Stepped has a train_step of its own"):
        program(engine=Stepped, **CAPTURES["one"]).run()


class Sums(Inner):
    total: Tensor

    def training_step(self, batch: Any) -> Tensor:
        with torch.no_grad():
            torch.add(self.total, 0.1, out=self.total)
        return super().training_step(batch) * (1 + 0.01 * self.total)


def test_what_is_written_by_out_is_written_once_a_step() -> None:
    engines = []
    for settings in ({}, CAPTURES["one"]):
        engine = program(Sums, **settings)
        engine.inner.total = torch.zeros((), dtype=torch.float64)
        engine.run()
        engines.append(engine)
    assert_same(engines[1], engines[0])
    torch.testing.assert_close(engines[1].inner.total, engines[0].inner.total)


class ALittle(Inner):
    """Changes its loss a little at the end of an epoch, by less than a compiled graph may round."""

    def epoch_callback(self) -> None:
        self.scale *= 0.9998


@pytest.mark.parametrize("capture", ["replay", "compile"])
def test_a_small_change_at_the_end_of_an_epoch_is_no_rounding(capture: str) -> None:
    engines = []
    for settings in ({}, {"capture": capture}):
        engine = program(ALittle, **settings)
        engine.run()
        engines.append(engine)
    for found, expected in zip(seen(engines[1])[1], seen(engines[0])[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Adds(Inner):
    """Trains another parameter from the end of an epoch on."""

    def training_step(self, batch: Any) -> Tensor:
        y = self.module.y
        return super().training_step(batch) + ((y - self.outer.module.x * batch) ** 2).sum()

    def epoch_callback(self) -> None:
        if len(self.optimizer.param_groups) == 1:
            self.optimizer.add_param_group({"params": [self.module.y]})


class Freezes(Adds):
    """Leaves it as it is from then on."""

    def epoch_callback(self) -> None:
        self.module.y.requires_grad_(False)


@pytest.mark.parametrize("kind", [Adds, Freezes])
def test_the_end_of_an_epoch_may_change_what_is_trained(kind: type[Inner]) -> None:
    """From the very step on whose batch is the first of the next epoch, the eighth."""
    engines = []
    for settings in ({}, CAPTURES["one"]):
        engine = program(kind, **{**settings, "train_iters": 7})
        engine.inner.module.y = nn.Parameter(torch.ones(3, dtype=torch.float64))
        if kind is Freezes:
            engine.inner.optimizer.add_param_group({"params": [engine.inner.module.y]})
        engine.run()
        before = engine.inner.module.y.detach().clone()
        assert torch.equal(before, torch.ones_like(before)) is (kind is Adds)
        engine.run()
        after = engine.inner.module.y.detach().clone()
        assert torch.equal(before, after) is (kind is Freezes)
        assert engine.inner.module.y.requires_grad is (kind is Adds)
        engines.append(engine)
    assert_same(engines[1], engines[0])
    ys = [engine.inner.module.y.detach() for engine in engines]
    torch.testing.assert_close(ys[1], ys[0], rtol=1e-12, atol=1e-12)


def test_a_rate_that_is_a_tensor_with_a_scheduler_is_refused() -> None:
    engine = program(capture="replay")
    engine.inner.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    engine.inner.scheduler = torch.optim.lr_scheduler.ExponentialLR(engine.inner.optimizer, 0.99)
    with pytest.raises(ConfigurationError, match="has a learning rate that is a tensor, and a sch"):
        engine.run()
