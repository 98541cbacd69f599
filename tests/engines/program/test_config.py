"""Settings of an engine: what is refused, and what old names mean."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from metaweight import ConfigurationError, EngineConfig, Logger


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "dstributed"}, r"strategy='dstributed'\) is not one of default, cpu, gpu"),
        ({"logger_type": "tensorbord"}, r"logger_type='tensorbord'\) is not one of none, tensor"),
        ({"logger_type": ("csv", "json")}, r"logger_type='json'\) is not one of"),
        (
            {"logger_type": 3},
            r"logger_type=3\) is no logger; give one of none, tensor.* from Logger",
        ),
        ({"logger_type": ("csv", Logger)}, r"logger_type=the class Logger\) is no logger"),
        ({"logger_type": ("csv", "csv")}, r"logger_type=...\) has 'csv' twice; list it once"),
        ({"early_stopping_mode": "least"}, r"early_stopping_mode='least'\) is not one of min, max"),
        ({"train_iters": -1}, r"train_iters=-1\) must be an integer of at least 0"),
        ({"train_iters": 1e4}, r"train_iters=10000.0\) must be an integer of at least 0"),
        ({"train_iters": True}, r"train_iters=True\) must be an integer"),
        ({"valid_step": 0}, r"valid_step=0\) must be an integer of at least 1"),
        ({"early_stopping_tolerance": 0}, r"early_stopping_tolerance=0\) must be an integer"),
        ({"device": "cpu", "strategy": "cpu"}, r"device='cpu', strategy='cpu'\) places.*twice"),
        ({"checkpoint_step": 0, "checkpoint_dir": "a"}, r"checkpoint_step=0\) must be an integer"),
        ({"keep_last": 0}, r"keep_last=0\) must be an integer of at least 1"),
        ({"keep_best": -1}, r"keep_best=-1\) must be an integer of at least 0"),
        ({"checkpoint_mode": "least"}, r"checkpoint_mode='least'\) is not one of min, max"),
        ({"checkpoint_failure": "ignore"}, r"checkpoint_failure='ignore'\) is not one of warn, ra"),
        ({"checkpoint_step": 5}, "asks for checkpoints, but no checkpoint_dir says where to"),
        ({"adapters_only": "no"}, r"adapters_only='no'\) must be True or False"),
        ({"adapters_only": True, "strategy": "fsdp"}, "which checkpoints save in shards; leave"),
        ({"keep_best": 2}, "asks for checkpoints, but no checkpoint_dir says where to"),
        ({"roll_back": "False"}, r"roll_back='False'\) must be True or False"),
        ({"early_stopping": "no"}, r"early_stopping='no'\) must be True or False"),
        ({"channels_last": None}, r"channels_last=None\) must be True or False"),
        ({"sync_batch_norm": 2}, r"sync_batch_norm=2\) must be True or False"),
        ({"progress": "yes"}, r"progress='yes'\) must be True or False"),
        ({"distributed": "no"}, r"distributed='no'\) must be True or False"),
        ({"backend": None}, r"backend=None\) must be a name"),
        ({"device": 3}, r"device=3\) must be the name of a device"),
        ({"early_stopping_metric": 3}, r"early_stopping_metric=3\) must be a name"),
        ({"checkpoint_metric": ""}, r"checkpoint_metric=''\) must be a name"),
        ({"log_dir": None}, r"log_dir=None\) must be the path of a folder"),
        ({"checkpoint_dir": 3}, r"checkpoint_dir=3\) must be the path of a folder"),
        ({"non_finite": "warn"}, r"non_finite='warn'\) is not one of ignore, raise"),
        ({"precision": "float16"}, r"precision='float16'\) is not one of fp32, fp16, bf16"),
        ({"precision": 16}, r"precision=16\) is not one of fp32, fp16, bf16"),
        ({"strategy": None}, r"strategy=None\) is not one of default"),
        ({"distributed": True, "strategy": "cpu"}, "asks for two strategies; keep only strategy="),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EngineConfig(**settings)


def test_errors_are_value_errors_too() -> None:
    with pytest.raises(ValueError, match="valid_step"):
        EngineConfig(valid_step=0)


def test_distributed_is_an_old_name_of_a_strategy() -> None:
    assert EngineConfig(distributed=True).strategy == "distributed"
    assert EngineConfig(distributed=True, strategy="distributed").strategy == "distributed"
    assert EngineConfig(distributed=False).strategy == "default"
    assert EngineConfig(distributed=False, strategy="cpu").strategy == "cpu"


def test_logger_types_are_a_tuple_however_they_were_given() -> None:
    assert EngineConfig().logger_types == ("none",)
    assert EngineConfig(logger_type="csv").logger_types == ("csv",)
    assert EngineConfig(logger_type=("csv", "jsonl")).logger_types == ("csv", "jsonl")


def test_a_configuration_is_frozen_and_can_be_varied() -> None:
    config = EngineConfig(distributed=True, train_iters=3)
    with pytest.raises(FrozenInstanceError):
        config.train_iters = 4  # type: ignore[misc]
    varied = replace(config, train_iters=4)
    assert (varied.train_iters, varied.strategy) == (4, "distributed")
