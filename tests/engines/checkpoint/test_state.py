"""A program saved after any step and resumed by fresh objects ends with the very same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.resuming import (
    EVERYWHERE,
    Build,
    Unrolled,
    assert_resumes_exactly,
    data_loader,
    seed_all,
    two_levels,
)
from support.zoo import ColumnWeighed
from torch.optim import lr_scheduler

from metaweight import EngineConfig, FiniteDifference, HypergradientCheck, Unroll
from metaweight.averaging import EMAHook

adam = torch.optim.Adam

PROGRAMS: dict[str, Build] = {
    "weights, batch norm, dropout, moving average": two_levels(
        hooks=lambda: [EMAHook("lower", 0.9, validate_teacher=True)], early_stopping=True
    ),
    "finite differences of a displaced step": two_levels(
        lower={"type": FiniteDifference(multitask=True)}
    ),
    "unrolled in mid-window": two_levels(Unrolled, lower={"unroll_steps": 3}),
    "unrolled, reading the values of gradients": two_levels(
        Unrolled, lower={"unroll_steps": 3, "type": Unroll(product="one_sided")}, optimizer=adam
    ),
    "unrolled Adam with clipping": two_levels(
        Unrolled, lower={"unroll_steps": 2, "gradient_clipping": 0.5}, optimizer=adam
    ),
    "accumulation in mid-window": two_levels(lower={"gradient_accumulation": 3}),
    "accumulation above and below": two_levels(
        lower={"gradient_accumulation": 2}, upper={"gradient_accumulation": 2}
    ),
    "unrolled accumulation": two_levels(
        Unrolled, lower={"unroll_steps": 2, "gradient_accumulation": 2}
    ),
    "warm-up": two_levels(lower={"warmup_steps": 4, "unroll_steps": 2}),
    "roll-back": two_levels(Unrolled, lower={"unroll_steps": 2}, roll_back=True),
    "roll-back of an accumulation": two_levels(
        lower={"unroll_steps": 2, "gradient_accumulation": 2}, roll_back=True, optimizer=adam
    ),
    "zero order": two_levels(lower={"type": "zero_order", "unroll_steps": 2}),
    "penalty": two_levels(lower={"type": "penalty", "unroll_steps": 2}),
    "a check of hypergradients": two_levels(
        lower={"unroll_steps": 2}, hooks=lambda: [HypergradientCheck(every=4)]
    ),
    "bf16": two_levels(lower={"precision": "bf16"}),
    "fp16 with a loss scale": two_levels(
        lower={"precision": "fp16", "initial_dynamic_scale": 2.0**18, "gradient_accumulation": 2}
    ),
    "json lines": two_levels(logger_type=("jsonl", "csv")),
    "channels last": two_levels(channels_last=True),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_resumed_from_any_place_it_ends_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    assert_resumes_exactly(PROGRAMS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_resumed_from_any_step_it_ends_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    assert_resumes_exactly(PROGRAMS[name], tmp_path, range(1, 9))


SCHEDULERS: dict[str, Any] = {
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=12),
    "function": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "cosine with restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "one after another": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.8)], [4]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_schedulers_go_on(name: str, tmp_path: Path) -> None:
    assert_resumes_exactly(two_levels(scheduler=SCHEDULERS[name]), tmp_path, [1, 4])


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        (ColumnWeighed, 2),
        (Unrolled, 0),
        pytest.param(ColumnWeighed, 0, marks=pytest.mark.slow),
        pytest.param(Unrolled, 2, marks=pytest.mark.slow),
    ],
)
def test_an_ordinary_loader_goes_on_in_mid_epoch(kind: Any, workers: int, tmp_path: Path) -> None:
    steps = EVERYWHERE if workers == 0 else [5]
    build = two_levels(kind, data=data_loader(workers), lower={"unroll_steps": 3})
    assert_resumes_exactly(build, tmp_path, steps)


def test_a_loader_with_a_generator_of_its_own_goes_on(tmp_path: Path) -> None:
    def data() -> Any:
        return data_loader(0, generator=torch.Generator().manual_seed(3))()

    assert_resumes_exactly(two_levels(data=data), tmp_path)


@pytest.mark.filterwarnings("ignore:.*is an iterator of type")
def test_lists_and_iterators_go_on(tmp_path: Path) -> None:
    def batches() -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        return [
            (torch.randn(4, 5, generator=generator), torch.randint(3, (4,), generator=generator))
            for _ in range(12)
        ]

    assert_resumes_exactly(two_levels(data=lambda: batches()[:4]), tmp_path / "list", [3, 4, 6])
    assert_resumes_exactly(two_levels(data=lambda: iter(batches())), tmp_path / "once", [3, 4, 6])


def test_a_run_can_be_resumed_again_and_again(tmp_path: Path) -> None:
    build = two_levels(Unrolled, lower={"unroll_steps": 3}, data=data_loader(0))
    seed_all(0)
    whole = build(log_dir=tmp_path / "whole")
    whole.run()
    for iterations in range(1, 10):
        seed_all(iterations)
        part = build(
            log_dir=tmp_path / "parts", checkpoint_dir=tmp_path / "saved", train_iters=iterations
        )
        if iterations == 1:
            seed_all(0)
        part.run(resume="auto")
    for name in ("lower", "upper"):
        a, b = getattr(whole, name).module, getattr(part, name).module
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert len(list((tmp_path / "saved").iterdir())) == EngineConfig().keep_last
