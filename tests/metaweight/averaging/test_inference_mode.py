"""What is made in ``torch.inference_mode``, as in a validation, serves training after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.resuming import Measured, difference, everything, samples, seed_all, two_levels
from support.small import numbers, problem, single
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metaweight import Engine, Hook
from metaweight.averaging import EMA, EMAHook
from metaweight.data import SampleLoader, TensorLoader
from metaweight.ensembles import OnlineEnsemble


def net() -> nn.Module:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def descend(model: nn.Module) -> None:
    """Take a step in ordinary mode."""
    model.zero_grad()
    model(samples(6, 1).inputs).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()


MADE: dict[str, Callable[[EMA], Any]] = {
    "teacher": EMA.teacher,
    "reset": EMA.reset,
    "apply": lambda ema: (ema.apply_teacher(), ema.restore_student()),
    "load": lambda ema: ema.load_state_dict(ema.state_dict()),
    "update": EMA.update,
}


@pytest.mark.parametrize("buffers", ["copy", "ema", "own", "none"])
@pytest.mark.parametrize("made", MADE)
def test_an_average_made_there_is_that_made_elsewhere(made: str, buffers: Any) -> None:
    found = []
    for mode in (True, False):
        model = net()
        with torch.inference_mode(mode), torch.no_grad():
            ema = EMA(model, 0.9, buffers=buffers)
            MADE[made](ema)
        for _ in range(2):
            descend(model)
            ema.update()
        with ema.applied():
            pass
        teacher = ema.teacher()
        tensors = [*teacher.parameters(), *teacher.buffers(), *ema.state_dict()["buffers"].values()]
        assert not any(t.is_inference() for t in tensors)
        # It may take part in a training loss.
        (teacher(samples(6, 1).inputs) * model(samples(6, 1).inputs)).sum().backward()
        found.append(tensors)
    for there, elsewhere in zip(*found, strict=True):
        assert torch.equal(there, elsewhere)


class Inferring(Measured):
    """Validates in inference mode, by a teacher that is made there."""

    @torch.inference_mode()
    def validation(self) -> dict[str, Any]:
        hook = next(h for h in self.hooks.hooks if isinstance(h, EMAHook))
        hook.ema.reset()
        hook.teacher().eval()
        with hook.applied():
            found = super().validation()
        self.kept = torch.tensor(found["loss"])
        return {"loss": self.kept}


class Noting(Hook):
    only_shows = True

    def after_validation(self, engine: Engine, stats: Any) -> None:
        assert not stats["loss"].is_inference()


def test_a_run_goes_on_after_validations_in_inference_mode(tmp_path: Path) -> None:
    build = two_levels(
        hooks=lambda: [EMAHook("lower", 0.9), Noting()], engine=Inferring, logger_type="none"
    )
    seed_all(0)
    whole = build()
    whole.run()
    seed_all(0)
    stopped = build(train_iters=5)
    stopped.run()
    with torch.inference_mode():
        stopped.save(tmp_path / "a.ckpt")
    resumed = build()
    with torch.inference_mode():
        resumed.load(tmp_path / "a.ckpt")
    resumed.run()
    assert not difference(everything(whole), everything(resumed))


@pytest.mark.parametrize("kind", ["tensors", "samples"])
def test_an_epoch_begun_there_gives_positions_that_can_be_kept(kind: str) -> None:
    data = samples(8, 1)
    loader: Any = (
        TensorLoader(data, 4, with_indices=True)
        if kind == "tensors"
        else SampleLoader(TensorDataset(data.inputs, data.labels), 4, with_indices=True)
    )
    with torch.inference_mode():
        batches = iter(loader)
        next(batches)
    table = torch.ones(8, requires_grad=True)
    (table[next(batches)[-1]] ** 2).sum().backward()
    assert table.grad is not None and table.grad.sum() == 8.0


def test_scores_found_there_can_weigh_a_loss() -> None:
    ensemble = OnlineEnsemble([net()])
    with torch.inference_mode():
        scores = ensemble.score(samples(8, 1))
    weight = torch.ones(8, requires_grad=True)
    (weight * scores).sum().backward()
    assert torch.equal(weight.grad, scores)  # type: ignore[arg-type]


class Caching(nn.Module):
    """Keeps a table as a buffer, made at the first pass, as positional encodings are."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.register_buffer("table", None)

    def forward(self) -> Tensor:
        if self.table is None:
            self.table = torch.full((1,), 2.0, dtype=torch.float64)
        return self.w * self.table


def test_buffers_made_there_can_enter_a_graph() -> None:
    class Validating(Engine):
        @torch.inference_mode()
        def validation(self) -> dict[str, Any]:
            self.chase.module.table = None
            return {"out": self.chase.module()}

    engine = single(
        problem(module=Caching(), data=numbers(1.0)), engine=Validating, steps=3, valid_step=1
    )
    engine.run()
    assert not engine.chase.module.table.is_inference()
