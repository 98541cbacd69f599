"""Running on the device, in the processes and in the precision of an ``Accelerator``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from support import accelerate_checks
from support.accelerate_checks import KINDS, forget_accelerator
from support.shared_out import parameters, program
from support.small import Point, numbers, problem
from support.two_processes import CLOSE, free_port, launched, same

from metaweight import Config, ConfigurationError, Engine, EngineConfig

ACCELERATE = EngineConfig(strategy="accelerate", train_iters=3)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Accelerator's state is one for the whole process, and so is its environment."""
    for name in ("LOCAL_RANK", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "-1" if name == "LOCAL_RANK" else "false")
    forget_accelerator()
    yield
    forget_accelerator()


def test_two_processes_end_where_one_does(together: list[dict[str, Any]], tmp_path: Path) -> None:
    same(together, "accelerated", accelerate_checks.accelerated(0, 1, tmp_path))


def test_what_an_accelerator_has_prepared_is_refused(together: list[dict[str, Any]]) -> None:
    """Otherwise gradients would be averaged twice, batches shared out twice, schedules rushed."""
    for found in together:
        messages = found["prepared_by_accelerator"]
        assert "'module' of problem 'fit' is a DistributedDataParallel" in messages[0]
        for message, part in zip(
            messages[1:], ("optimizer", "scheduler", "loader .* DataLoader"), strict=True
        ):
            pattern = rf"ConfigurationError: The {part}.* that Accelerator\.prepare\(\) returns"
            with pytest.raises(ConfigurationError, match=pattern):
                raise ConfigurationError(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it counts them")
def test_an_accelerator_that_does_not_count_the_processes_is_refused(
    together: list[dict[str, Any]],
) -> None:
    """On a machine without GPUs, ``Accelerator()`` says it is alone inside a group of two."""
    for found in together:
        assert "counts 1 process(es), but torch.distributed has 2" in found["uncounted"]


def test_a_script_on_its_own_is_one_process() -> None:
    engine = program("darts", 0, 1, strategy="accelerate")
    plain = program("darts", 0, 1)
    engine.run()
    plain.run()
    assert engine.device == AcceleratorState().device == torch.device("cpu")
    assert engine.processes.world == AcceleratorState().num_processes == 1
    torch.testing.assert_close(parameters(engine), parameters(plain), rtol=0, atol=0)


def single_precision(**config: Any) -> Any:
    return problem(
        module=Point(0.3).float(),
        data=[batch.float() for batch in numbers(1.0)],
        config=Config(**config),
    )


def test_problems_compute_in_its_mixed_precision() -> None:
    Accelerator(cpu=True, mixed_precision="bf16")
    asked = single_precision()
    Engine([asked], ACCELERATE)
    assert asked.config.precision == "bf16"
    own = single_precision(precision="bf16")
    Engine([own], ACCELERATE)
    assert own.config.precision == "bf16"
    for precision in ("fp16", "fp32"):
        other = single_precision(precision=precision)
        Engine([other], ACCELERATE)
        assert other.config.precision == precision


def test_loss_scaling_comes_with_half_precision() -> None:
    """Settings of the scale stay the problem's own."""
    Accelerator(cpu=True, mixed_precision="fp16")
    asked = single_precision(initial_dynamic_scale=8.0)
    Engine([asked], ACCELERATE)
    assert asked.scaler is not None
    assert asked.config == Config(precision="fp16", initial_dynamic_scale=8.0)


def test_without_mixed_precision_problems_keep_their_own() -> None:
    Accelerator(cpu=True)
    own = single_precision(precision="bf16")
    Engine([own], ACCELERATE)
    assert own.config.precision == "bf16"


@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_an_engine_may_ask_for_what_the_accelerator_leaves_open(mixed: str) -> None:
    Accelerator(cpu=True, mixed_precision=mixed)
    asked = single_precision()
    Engine([asked], replace(ACCELERATE, precision="bf16"))
    assert asked.config.precision == "bf16"


@pytest.mark.parametrize("own", ["fp32", "fp16"])
def test_an_engine_that_asks_for_another_precision_is_refused(own: str) -> None:
    Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(
        ConfigurationError,
        match=rf"EngineConfig\(precision='{own}'\) and Accelerator\(mixed_precision='bf16'\) ask "
        "for two precisions; keep one of them",
    ):
        Engine([single_precision()], replace(ACCELERATE, precision=own))


def refused(message: str) -> Any:
    return pytest.raises(
        ConfigurationError, match=r"The Accelerator of EngineConfig\(strategy='accel.*" + message
    )


def test_accumulation_belongs_to_the_problems() -> None:
    Accelerator(cpu=True, gradient_accumulation_steps=4)
    with refused(r"asks for gradient_accumulation_steps=4, but each .*Config\(gradient_accum"):
        Engine([problem()], ACCELERATE)
    assert GradientState().num_steps == 4


def test_compilation_belongs_to_the_problems() -> None:
    Accelerator(cpu=True, dynamo_backend="eager")
    with refused(r"asks for the dynamo backend EAGER, but compile modules by Config\(compile"):
        Engine([problem()], ACCELERATE)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ],
)
def test_what_splits_models_up_is_refused(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    with refused(rf"asks for {name} \({variable}=true\), but an engine keeps a whole copy"):
        Engine([problem()], ACCELERATE)
    assert AcceleratorState._shared_state == {}


def test_a_plugin_given_in_the_script_is_refused() -> None:
    Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    with refused("asks for FSDP"):
        Engine([problem()], ACCELERATE)


@pytest.mark.parametrize(
    ("held", "value", "message"),
    [
        ("_mixed_precision", "fp8", "asks for mixed_precision='fp8', but use one of no, bf16"),
        ("distributed_type", "MULTI_XPU", "asks for the distributed type MULTI_XPU, but an engine"),
        ("parallelism_config", object(), "asks for a parallelism_config, but an engine keeps"),
        ("device", torch.device("cuda", 1), r"asks for the device cuda:1, but .*backend='gloo'"),
    ],
)
def test_other_states_are_refused(held: str, value: Any, message: str) -> None:
    """Some of them need hardware to come about by themselves."""
    Accelerator(cpu=True)
    kept = DistributedType(value) if held == "distributed_type" else value
    states = (AcceleratorState, PartialState)
    for state in states[:1] if held == "_mixed_precision" else states:
        state._shared_state[held] = kept
    with refused(message):
        Engine([problem()], EngineConfig(strategy="accelerate", backend="gloo"))


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'metaweight\[accelerate\]', or use"):
        Engine([problem()], ACCELERATE)


SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from support.shared_out import parameters, program
rank = int(os.environ["RANK"])
engine = program(sys.argv[2], rank, 2, strategy="accelerate")
engine.run()
torch.save((engine.processes.world, parameters(engine)), Path(sys.argv[1]) / f"end_{rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:2])
def test_its_launcher_starts_the_processes(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # With --cpu it starts a single process, unless mpirun starts others.
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(free_port())]
    ended = launched(launcher, script, str(tmp_path), kind)
    assert ended.returncode == 0, ended.stderr
    alone = program(kind, 0, 1)
    alone.run()
    for rank in range(2):
        world, end = torch.load(tmp_path / f"end_{rank}.pt", weights_only=True)
        assert world == 2
        torch.testing.assert_close(end, parameters(alone), **CLOSE)
