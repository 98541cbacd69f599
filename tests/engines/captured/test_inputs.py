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

from metaweight import Config, ConfigurationError, Engine, ImplicitProblem

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


class Writing(Inner):
    """Writes to its batch."""

    def training_step(self, batch: Any) -> Tensor:
        batch.mul_(0.99)
        return super().training_step(batch)


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


def program(laid: Callable[[Tensor], Tensor], inner: Any = Inner, **settings: Any) -> Engine:
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
    return Engine.bilevel(
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
}


CASES = [
    *((name, Inner, "replay") for name in LAID),
    *((name, Inner, "compile") for name in ("by columns", "negated")),
    *((name, Writing, "replay") for name in LAID if name not in ("expanded", "a parameter")),
    ("by columns", Writing, "compile"),
]


@pytest.mark.parametrize(("name", "inner", "capture"), CASES)
def test_batches_may_lie_in_memory_in_any_way(name: str, inner: Any, capture: str) -> None:
    ends = []
    for settings in ({}, {"capture": capture}):
        engine = program(LAID[name], inner, **settings)
        engine.run()
        ends.append(points(engine))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-12)


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


def test_what_steps_write_to_is_a_copy() -> None:
    place, value = torch.zeros(3), torch.ones(3)
    inputs = inputs_of(lambda x: x.mul_(2), place)
    assert inputs.given([value])[0] is place
    assert torch.equal(place, value)


def test_a_batch_that_no_operation_reads_is_no_input() -> None:
    place = torch.zeros(3)
    assert inputs_of(lambda x: torch.ones(2), place).given([place]) == []


@pytest.mark.parametrize("capture", ["replay", "compile"])
@pytest.mark.parametrize(
    "laid",
    [lambda t: t.t().contiguous().t(), lambda t: t.clone().float()],
    ids=["by columns", "float32"],
)
def test_parameters_may_be_laid_elsewhere_between_runs(laid: Any, capture: str) -> None:
    """Of float32 they end to its rounding."""
    ends = []
    for settings in ({}, {"capture": capture}):
        engine = program(torch.clone, **settings)
        engine.run()
        for problem in engine.problems:
            problem.module.x.data = laid(problem.module.x.data)
        engine.run()
        ends.append(points(engine))
        assert all(torch.isfinite(x).all() for x in ends[-1])
    exact = ends[0][0].dtype is WIDE
    tolerance = 1e-12 if exact else 1e-4
    torch.testing.assert_close(ends[1], ends[0], rtol=tolerance, atol=tolerance)


class OfRows(Inner):
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
    engine = program(torch.clone, OfRows, capture="replay")
    engine.inner.table = torch.linspace(1, 2, 72, dtype=WIDE).view(6, 3, 4)
    engine.inner.rows = list(engine.inner.table.unbind())
    with pytest.raises(ConfigurationError, match="a batch shares memory with a parameter"):
        engine.run()


def test_what_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise RuntimeError("No working C++ compiler found\nin a list")

    monkeypatch.setattr(torch._inductor, "compile", fails)
    engine = program(torch.clone, capture="compile")
    with pytest.raises(
        ConfigurationError,
        match=r"cannot compile the captured steps: No working C\+\+ compiler found\. A C\+\+ .* "
        r"choose capture='replay'",
    ):
        engine.run()
