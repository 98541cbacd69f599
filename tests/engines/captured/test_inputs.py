"""What a graph reads: batches where their loaders put them, and tensors that lie as they did.

Graphs end where Python does, to 1e-12, which leaves room for forty steps' roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from metaweight.engines.captured.inputs import Inputs
from metaweight.engines.captured.operations import traced
from torch import Tensor, nn

from metaweight import Config, ConfigurationError, Engine, Hook, ImplicitProblem

WIDE = torch.float64


class Matrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.linspace(0.5, 1, 12, dtype=WIDE).view(3, 4))


class Inner(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return ((self.module.x - self.outer.module.x * batch.real) ** 2).sum()


class Outer(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return ((self.inner.module.x - batch.real) ** 2).sum()


def matrices(seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 4, generator=draw, dtype=WIDE) for _ in range(7)]


class Laid:
    """Batches of the same values, of which some lie in memory in another way."""

    def __init__(self, batches: list[Tensor], laid: Callable[[Tensor], Tensor]) -> None:
        self.batches, self.laid = batches, laid

    def __iter__(self) -> Iterator[Tensor]:
        for number, batch in enumerate(self.batches):
            yield self.laid(batch) if number % 3 == 2 else batch.clone()


def program(
    laid: Callable[[Tensor], Tensor],
    inner: Any = Inner,
    engine: type[Engine] = Engine,
    **settings: Any,
) -> Any:
    below, above = Matrix(), Matrix()
    lower = inner(
        "inner",
        Config(type="darts"),
        module=below,
        optimizer=torch.optim.SGD(below.parameters(), 0.1),
        train_data_loader=Laid(matrices(1), laid),
    )
    upper = Outer(
        "outer",
        module=above,
        optimizer=torch.optim.SGD(above.parameters(), 0.01),
        train_data_loader=Laid(matrices(2), laid),
    )
    return engine.bilevel(
        upper, lower, **{"train_iters": 42, "progress": False, "valid_step": 1000, **settings}
    )


def points(engine: Engine) -> list[Tensor]:
    return [p.module.x.detach().clone() for p in engine.problems]


LAID: dict[str, Callable[[Tensor], Tensor]] = {
    "alike": torch.clone,
    "by columns": lambda t: t.t().contiguous().t(),
    "inside another": lambda t: torch.stack([t, t], -1).flatten(1)[:, ::2],
    "expanded": lambda t: t[:1].clone().expand(3, 4),
    "negated": lambda t: torch._neg_view(-t),
    "a parameter": lambda t: nn.Parameter(t.clone()),
    "zeros without memory": lambda t: torch._efficientzerotensor((3, 4), dtype=WIDE),
}


def assert_same_ends(make: Callable[..., Engine], capture: str, tolerance: float = 1e-12) -> None:
    ends = []
    for settings in ({}, {"capture": capture}):
        engine = make(**settings)
        engine.run()
        ends.append(points(engine))
    torch.testing.assert_close(ends[1], ends[0], rtol=tolerance, atol=tolerance)


CASES = [
    *((name, "replay") for name in LAID),
    *((name, "compile") for name in ("by columns", "negated", "zeros without memory")),
]


@pytest.mark.parametrize(("name", "capture"), CASES)
def test_batches_may_lie_in_memory_in_any_way(name: str, capture: str) -> None:
    assert_same_ends(lambda **given: program(LAID[name], **given), capture)


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "as a parameter": lambda t: nn.Parameter(t, requires_grad=False),
    "by DLPack": torch.from_dlpack,
    "as a constant": lambda t: t.data,
    "twice": lambda t: (torch.from_dlpack(t) + t) / 2,
}


@pytest.mark.parametrize("name", READ)
def test_steps_may_read_their_batch_by_other_tensors(name: str) -> None:
    class Reading(Inner):
        def training_step(self, batch: Any) -> Tensor:
            return super().training_step(READ[name](batch))

    assert_same_ends(lambda **given: program(torch.clone, Reading, **given), "replay")


def inputs_of(step: Callable[[Tensor], Tensor], place: Tensor) -> Inputs:
    return Inputs(traced(lambda: [step(place)]), [place])


def test_batches_are_read_where_they_are() -> None:
    place, value = torch.zeros(3, 4), torch.ones(3, 4)
    inputs = inputs_of(lambda x: x * 2, place)
    assert inputs.given([value])[0] is value
    by_columns = value.t().contiguous().t()
    (given,) = inputs.given([by_columns])
    assert given is place
    assert torch.equal(given, value)


class Writing(Outer):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch.clamp_(max=0.5))


def test_steps_that_write_to_their_batch_are_refused() -> None:
    engine = program(torch.clone, capture="replay")
    engine.outer.__class__ = Writing
    before = points(engine)
    with pytest.raises(ConfigurationError, match=r"writes to its batch, as x\.clamp_"):
        engine.run()
    assert engine.global_step == 3
    assert not torch.equal(points(engine)[0], before[0])


def test_sparse_batches_are_refused() -> None:
    class Sparse(Inner):
        def training_step(self, batch: Any) -> Tensor:
            return super().training_step(batch.to_dense())

    engine = program(torch.clone, Sparse, capture="replay")
    engine.inner.set_train_data_loader([m.to_sparse() for m in matrices(1)])
    with pytest.raises(ConfigurationError, match=r"received one of layout torch\.sparse_coo; let"):
        engine.run()


def test_a_batch_that_no_operation_reads_is_no_input() -> None:
    place = torch.zeros(3)
    assert inputs_of(lambda x: torch.ones(2), place).given([place]) == []


def by_columns(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t()


class Lays(Hook):
    """Lays the parameters elsewhere, or one over the other, at one of the engine's moments."""

    engine: Any

    def __init__(self, moment: str, laid: Callable[[Tensor], Tensor] | None) -> None:
        self.moment, self.laid = moment, laid

    def lay(self, moment: str) -> None:
        # Iteration 21 is not one that is compared.
        if moment == self.moment and self.engine.global_step >= 21:
            self.moment = ""
            for problem in self.engine.problems:
                x = problem.module.x
                x.data = self.engine.outer.module.x.data if self.laid is None else self.laid(x.data)

    def run_start(self, engine: Any) -> None:
        self.lay("a run")

    def after_validation(self, engine: Any, stats: Any) -> None:
        self.lay("a validation")


class LaysBetween(Lays):
    """The same between two iterations."""

    def iteration_end(self, engine: Any) -> None:
        self.lay("an iteration")


@pytest.mark.parametrize("capture", ["replay", "compile"])
def test_parameters_may_come_to_share_memory_between_iterations(capture: str) -> None:
    """Where nothing is compared: a graph compiled for memory of their own would end elsewhere."""
    ends = []
    for settings in ({}, {"capture": capture}):
        lays = LaysBetween("an iteration", None)
        lays.engine = program(torch.clone, hooks=[lays], **settings)
        lays.engine.run()
        assert lays.moment == ""
        ends.append(points(lays.engine))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-12)


class Draws(Inner):
    """Lays the parameters elsewhere as a batch is drawn."""

    lays: Lays

    def get_batch(self) -> Any:
        self.lays.lay("a draw")
        return super().get_batch()


class Validated(Engine):
    def validation(self) -> dict[str, float]:
        return {"loss": 1.0}


MOVES = {
    "by columns": (by_columns, 1e-12),
    "in float32": (lambda t: t.clone().float(), 1e-4),
    "elsewhere": (torch.clone, 1e-12),
    "over another": (None, 1e-12),
}


@pytest.mark.parametrize("capture", ["replay", "compile"])
@pytest.mark.parametrize("moment", ["a run", "a validation", "a draw"])
@pytest.mark.parametrize("name", MOVES)
def test_parameters_may_be_laid_elsewhere(name: str, moment: str, capture: str) -> None:
    """Where nothing but their memory tells of it; in float32 to what its rounding leaves."""
    laid, tolerance = MOVES[name]
    ends = []
    for settings in ({}, {"capture": capture}):
        lays = Lays(moment, laid)
        engine = program(
            torch.clone, Draws, engine=Validated, hooks=[lays], **{"valid_step": 21, **settings}
        )
        engine.inner.lays, lays.engine = lays, engine
        engine.run()
        engine.run()
        assert lays.moment == ""
        ends.append(points(engine))
    torch.testing.assert_close(ends[1], ends[0], rtol=tolerance, atol=tolerance)


class OfRows(Outer):
    """Gives rows of a table that its steps write to."""

    rows: list[Tensor]
    table: Tensor

    def get_batch(self) -> Any:
        return self.rows[self.count % 6]

    def training_step(self, batch: Any) -> Tensor:
        with torch.no_grad():
            self.table.mul_(0.9)
        return super().training_step(batch)


def test_batches_that_share_memory_with_what_steps_write_are_refused() -> None:
    engine = program(torch.clone, capture="replay")
    engine.outer.__class__ = OfRows
    engine.outer.table = torch.linspace(1, 2, 72, dtype=WIDE).view(6, 3, 4)
    engine.outer.rows = list(engine.outer.table.unbind())
    with pytest.raises(ConfigurationError, match="a batch shares memory with a parameter"):
        engine.run()


class Sometimes(Outer):
    """Gives a parameter for a batch in a few steps that are not compared."""

    def get_batch(self) -> Any:
        drawn = super().get_batch()
        return self.inner.module.x.data if 20 <= self.count < 25 else drawn


def test_a_batch_that_seldom_is_a_parameter_is_refused() -> None:
    engine = program(torch.clone, capture="replay")
    engine.outer.__class__ = Sometimes
    with pytest.raises(ConfigurationError, match="a batch shares memory with a parameter"):
        engine.run()
    assert engine.global_step >= 20


def test_what_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **options: Any) -> None:
        raise RuntimeError("No working C++ compiler found\nin a list")

    monkeypatch.setattr(torch._inductor, "compile", fails)
    engine = program(torch.clone, capture="compile")
    with pytest.raises(
        ConfigurationError,
        match=r"cannot compile the captured steps: No working C\+\+ compiler found\. A C\+\+ .* "
        r"choose capture='replay'",
    ):
        engine.run()
