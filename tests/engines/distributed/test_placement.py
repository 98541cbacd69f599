"""Where an engine puts its problems."""

from __future__ import annotations

import pytest
import torch
from metaweight.engines.distributed.placement import choose_device
from support.small import Chase, Point, problem, single

from metaweight import ConfigurationError, Engine, EngineConfig


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_cpu_is_cpu_also_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch)
    assert choose_device(EngineConfig(strategy="cpu")) == torch.device("cpu")


def test_default_takes_a_gpu_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch)
    assert choose_device(EngineConfig()) == torch.device("cuda")
    without_gpu(monkeypatch)
    assert choose_device(EngineConfig()) == torch.device("cpu")


def test_gpu_without_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"torch sees no GPU here.*use strategy='cpu'"):
        choose_device(EngineConfig(strategy="gpu"))
    with_gpu(monkeypatch)
    assert choose_device(EngineConfig(strategy="gpu")) == torch.device("cuda")


def test_a_device_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device(EngineConfig(device="cuda:3")) == torch.device("cuda", 3)


def test_the_old_name_of_distributed_asks_for_torchrun() -> None:
    with pytest.raises(ConfigurationError, match=r"strategy='distributed'.*torchrun"):
        Engine([problem()], EngineConfig(distributed=True))


def test_problems_go_where_the_engine_says_unless_they_say_so_themselves() -> None:
    class Still(Chase):
        """Never stepped, so that a device without numbers will do."""

    own = problem(Still, "own", module=Point(0.0).to("meta"), device="meta")
    given = problem(Still, "given")
    engine = Engine([own, given], EngineConfig(device="cpu"))
    assert engine.device == torch.device("cpu")
    assert own.device == own.module.w.device == torch.device("meta")
    assert given.device == given.module.w.device == torch.device("cpu")


def test_parameters_stay_the_objects_the_optimizer_knows() -> None:
    lower = problem()
    parameter, optimizer = lower.module.w, lower.optimizer
    single(lower).run()
    assert lower.module.w is parameter
    assert lower.optimizer is optimizer
