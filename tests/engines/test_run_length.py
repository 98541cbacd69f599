"""How long a run is, in steps or in passes over a loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import Inner, Outer, numbers, problem
from torch.utils.data import DataLoader, IterableDataset

from metaweight import Config, ConfigurationError, Engine, EngineConfig, Hook, Unroll

DATA = numbers(1.0, 2.0, 4.0, 5.0, 3.0)


def program(inner_config: Config | None = None, **settings: Any) -> Engine:
    """A bilevel program on five batches below and one above."""
    return Engine.bilevel(
        problem(Outer, "outer", start=(0.5,), data=numbers(3.0)),
        problem(Inner, "inner", data=DATA, config=inner_config),
        **({"strategy": "cpu", "progress": False} | settings),
    )


CONFIGS = [
    Config(),
    Config(gradient_accumulation=2, unroll_steps=2),
    Config(type=Unroll(), unroll_steps=3),
    Config(unroll_steps=2, warmup_steps=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["each", "accumulated", "unrolled", "warm"])
@pytest.mark.parametrize("roll_back", [False, True])
def test_epochs_are_the_steps_that_read_every_batch_so_often(
    config: Config, roll_back: bool
) -> None:
    by_epochs = program(config, epochs=3, roll_back=roll_back)
    assert by_epochs.train_iters == 15
    by_epochs.run()
    by_steps = program(config, train_iters=15, roll_back=roll_back)
    by_steps.run()
    assert torch.equal(by_epochs.inner.module.w, by_steps.inner.module.w)
    assert torch.equal(by_epochs.outer.module.w, by_steps.outer.module.w)
    # Two passes have ended, and the third has no batch left.
    assert by_epochs.inner.epoch_counter == [2]
    by_epochs.inner.get_batch()
    assert by_epochs.inner.epoch_counter == [3]


def test_hooks_and_progress_see_the_steps() -> None:
    seen = []

    class Ask(Hook):
        def run_start(self, engine: Engine) -> None:
            seen.append(engine.train_iters)

    program(epochs=2, hooks=[Ask()]).run()
    assert seen == [10]


def test_no_epochs_are_no_steps() -> None:
    engine = program(epochs=0)
    engine.run()
    assert engine.global_step == 0


def test_the_first_of_several_loaders_is_counted() -> None:
    class Both(Inner):
        def training_step(self, batch: Any) -> Any:
            return super().training_step(batch[0] + batch[1])

    low = problem(Both, "inner", data=(DATA, numbers(0.0, 0.5)))
    up = problem(Outer, "outer", data=numbers(3.0))
    assert Engine.bilevel(up, low, epochs=2, strategy="cpu").train_iters == 10


def test_a_run_in_epochs_is_resumed_exactly(tmp_path: Path) -> None:
    config = Config(gradient_accumulation=2, unroll_steps=2)
    whole = program(config, epochs=3)
    whole.run()
    first = program(config, epochs=3)
    first.train_iters = 8
    first.run()
    first.save(tmp_path / "saved.pt")
    second = program(config, epochs=3)
    second.run(resume=tmp_path / "saved.pt")
    assert second.global_step == 15
    assert torch.equal(second.inner.module.w, whole.inner.module.w)
    assert torch.equal(second.outer.module.w, whole.outer.module.w)
    with pytest.raises(ConfigurationError, match="beyond the end of the run"):
        program(config, epochs=1).run(resume=tmp_path / "saved.pt")


def test_leaf_problems_share_a_length() -> None:
    def engine(*data: Any) -> Engine:
        lowers = [problem(name=f"leaf{i}", data=each) for i, each in enumerate(data)]
        return Engine(lowers, EngineConfig(epochs=2, strategy="cpu"))

    assert engine(DATA, numbers(*range(5))).train_iters == 10
    message = r"epochs=2\) .* different numbers of batches \(leaf0: 5, leaf1: 3\); give train_iters"
    with pytest.raises(ConfigurationError, match=message):
        engine(DATA, DATA[:3])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(DATA)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (DataLoader(Endless(), batch_size=None), "a DataLoader without a length"),
        (iter(DATA), "a list_iterator without a length"),
    ],
)
def test_a_loader_without_length_is_refused(data: Any, what: str) -> None:
    message = rf"epochs=2\) .* leaf problem 'inner', which has {what}; give train_iters, or"
    with pytest.raises(ConfigurationError, match=message):
        Engine.bilevel(problem(Outer, "outer"), problem(Inner, "inner", data=data), epochs=2)


def test_a_problem_without_a_loader_is_refused() -> None:
    class Own(Inner):
        def get_batch(self) -> Any:
            return DATA[0]

    low = problem(Own, "inner")
    low.train_data_loader = None
    up = problem(Outer, "outer", data=numbers(3.0))
    with pytest.raises(ConfigurationError, match="'inner', which has none; give train_iters"):
        Engine.bilevel(up, low, epochs=2, strategy="cpu")


def test_the_length_is_said_once() -> None:
    message = r"train_iters=3, epochs=2\) says twice how long to train; keep one of the two"
    with pytest.raises(ConfigurationError, match=message):
        EngineConfig(train_iters=3, epochs=2)
    with pytest.raises(ConfigurationError, match=r"epochs=1.5\) must be an integer of at least 0"):
        EngineConfig(epochs=1.5)  # type: ignore[arg-type]
