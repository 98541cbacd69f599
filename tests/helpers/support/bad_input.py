"""Rows of the tables of what a user can get wrong, and all that must be the same afterwards."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, Problem

from .resuming import difference
from .small import Inner, Outer, Point, bilevel, numbers, problem

__all__ = ["Inner", "Outer", "Point", "Row", "bilevel", "numbers", "problem"]


def nothing() -> None:
    """The program of a row that needs none."""


@dataclass(frozen=True)
class Row:
    """One way to err.

    Attributes:
        error: What is raised.
        words: What its message and notes must hold, in this order, with "…" for what lies between:
            who is to blame, what was received, what to do.
        act: Errs, given the program.
        given: Builds the program: an engine, some problems, or nothing.
        draws: Whether a batch has been drawn and evaluated by then, which moves random streams.
        stepped: Names of problems that have rightly stepped before; only the others are looked at.
    """

    error: type[BaseException]
    words: str
    act: Callable[[Any], object]
    given: Callable[[], Any] = nothing
    draws: bool = False
    stepped: tuple[str, ...] = ()


def assert_refused(row: Row) -> None:
    """Err, and see that the message says what it must and that nothing has changed."""
    program = row.given()
    torch.default_generator.manual_seed(5)
    before = state_of(program, row)
    with pytest.raises(row.error) as raised:
        row.act(program)
    error = raised.value
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    pattern = ".*".join(map(re.escape, row.words.split(" … ")))
    assert re.search(pattern, text, re.DOTALL), f"{row.words} is not in: {text}"
    found = difference(before, state_of(program, row))
    assert not found, found


def state_of(program: Any, row: Row) -> dict[str, Any]:
    """Return everything an error must leave as it is."""
    problems = program.problems if isinstance(program, Engine) else program or []
    state: dict[str, Any] = {p.name: _problem(p) for p in problems if p.name not in row.stepped}
    if row.stepped:
        for parts in state.values():
            del parts["counters"]
    elif isinstance(program, Engine):
        state["schedule"] = program.schedule.state_dict()
        state["counters"] = [program.global_step, program.train_iters, program.run_state.run]
    if not row.draws:
        state["streams"] = {
            "torch": torch.get_rng_state(),
            "numpy": str(np.random.get_state()),
            "python": str(random.getstate()),
        }
    return state


def _problem(p: Problem) -> dict[str, Any]:
    module: Any = p.module if isinstance(p.module, nn.Module) else nn.Module()
    parameters = dict(module.named_parameters())
    return {
        "parameters": {n: t.detach().clone() for n, t in parameters.items() if not t.is_meta},
        "flags": {n: (t.requires_grad, str(t.device), id(t)) for n, t in parameters.items()},
        "gradients": {n: None if t.grad is None else t.grad.clone() for n, t in parameters.items()},
        "buffers": {n: b.clone() for n, b in module.named_buffers()},
        "modes": [m.training for m in module.modules()],
        "optimizer": _copied(p.optimizer),
        "scheduler": _copied(p.scheduler),
        "counters": [p.count, p.step_state.global_step],
        "place": [str(p.device), sorted(p.position.peers), [len(path) for path in p.paths]],
        "parts": [id(p.module), id(p.optimizer), id(p.scheduler), p.step_state.driver is None],
        "recorded": [
            len(p.step_state.trajectory.updates),
            p.step_state.trajectory.under_way is None,
        ],
    }


def _copied(part: Any) -> Any:
    found = part.state_dict() if callable(getattr(part, "state_dict", None)) else None
    if isinstance(part, type) or not isinstance(found, Mapping):
        return None
    return _cloned({k: v for k, v in found.items() if k != "_last_lr"})


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {k: _cloned(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cloned(v) for v in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


GOOD = (torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 2, 0]))


class Classifier(ImplicitProblem):
    """Cross-entropy; ``answer`` may make something else of the loss."""

    answer: Callable[[Tensor], Any] = staticmethod(lambda loss: loss)

    def training_step(self, batch: Any) -> Any:
        inputs, labels = batch
        return self.answer(F.cross_entropy(self.module(inputs), labels))


def classifier(
    config: Config | None = None, kind: type[ImplicitProblem] = Classifier, **settings: Any
) -> Engine:
    """A network with batch norm, dropout and momentum that has taken two steps."""
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    learner = kind("net", config, net, optimizer, train_data_loader=[GOOD])
    settings = {"train_iters": 2, "strategy": "cpu"} | settings
    engine = Engine([learner], EngineConfig(**settings))
    engine.run()
    return engine


def fed(*batches: Any) -> Callable[[Engine], None]:
    """Return what runs a classifier on these batches."""

    def run(engine: Engine) -> None:
        engine.net.set_train_data_loader(batches[0] if len(batches) == 1 else list(batches))
        engine.run()

    return run


def answering(answer: Callable[[Tensor], Any]) -> Callable[[Engine], None]:
    """Return what lets the training step of a classifier return something else, and runs it."""

    def run(engine: Engine) -> None:
        engine.net.answer = answer
        engine.run()

    return run
