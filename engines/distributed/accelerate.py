"""Use the device, the processes and the precision of Hugging Face's ``accelerate``.

All ``Accelerator`` objects of a process share one state, so an ``Accelerator`` made in the user's
script is found here. The engine itself places models and shares out batches, since it handles
several levels.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from metaweight.problems import ConfigurationError, Problem

from ..program.config import EngineConfig
from .process_group import leave

# Distributed types of ``accelerate`` with a whole copy of the model in each process.
REPLICATED = ("NO", "MULTI_CPU", "MULTI_GPU")
PRECISIONS = {"no": None, "bf16": "bf16", "fp16": "fp16"}
# Environment variables set by launchers and plugins of ``accelerate`` that split a model.
PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def accelerator_state(config: EngineConfig) -> Any:
    """Return the state of the ``Accelerator``; make one if there is none.

    With several processes, this waits for all of them.

    Raises:
        ConfigurationError: When ``accelerate`` is not installed, or the Accelerator asks for
            something the engine does not support.
    """
    try:
        from accelerate import Accelerator  # noqa: PLC0415
        from accelerate.state import (  # noqa: PLC0415
            AcceleratorState,
            GradientState,
            is_initialized,
        )
    except ImportError as error:
        raise ConfigurationError(
            "EngineConfig(strategy='accelerate') needs the package accelerate; pip install "
            "'metaweight[accelerate]', or use strategy='distributed' with torchrun."
        ) from error
    for variable, name in PLUGINS.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise _refused(f"{name} ({variable}={os.environ[variable]})", _REPLICATE)
    if not is_initialized():
        # Without GPUs, Accelerator finds several processes only with cpu=True.
        Accelerator(cpu=config.backend == "gloo" or not torch.cuda.is_available())
        if dist.is_available() and dist.is_initialized():
            atexit.register(leave)
    state = AcceleratorState()
    _require_known(state, config)
    _require_everyone(state.num_processes)
    steps = GradientState().num_steps
    if steps != 1:
        raise _refused(
            f"gradient_accumulation_steps={steps}",
            "each problem has its own, Config(gradient_accumulation=...); leave it at 1 there",
        )
    return state


def accelerators_precision(config: EngineConfig) -> str | None:
    """Return the Accelerator's mixed precision, with ``strategy="accelerate"``, if it has one."""
    if config.strategy != "accelerate":
        return None
    return PRECISIONS[accelerator_state(config).mixed_precision]


def require_unprepared(problem: Problem, config: EngineConfig) -> None:
    """Refuse objects returned by ``Accelerator.prepare``, with ``strategy="accelerate"``.

    Raises:
        ConfigurationError: Naming the object.
    """
    if config.strategy != "accelerate":
        return
    from accelerate.data_loader import DataLoaderStateMixin  # noqa: PLC0415
    from accelerate.optimizer import AcceleratedOptimizer  # noqa: PLC0415
    from accelerate.scheduler import AcceleratedScheduler  # noqa: PLC0415

    loaders = problem.train_data_loader
    parts: list[tuple[str, Any, Any]] = [
        ("optimizer", problem.optimizer, AcceleratedOptimizer),
        ("scheduler", problem.scheduler, AcceleratedScheduler),
    ]
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        parts.append(("loader", loader, DataLoaderStateMixin))
    for name, part, prepared in parts:
        if isinstance(part, prepared):
            raise ConfigurationError(
                f"The {name} of problem {problem.name!r} is the {type(part).__name__} that "
                "Accelerator.prepare() returns, but the engine itself averages gradients and "
                f"shares out batches; give it the {name} as it was before."
            )


_REPLICATE = (
    "an engine keeps a whole copy of each module in every process; use an Accelerator without it"
)


def _require_known(state: Any, config: EngineConfig) -> None:
    kind = str(state.distributed_type.value)
    if kind not in REPLICATED:
        raise _refused(f"the distributed type {kind}", _REPLICATE)
    if getattr(state, "parallelism_config", None) is not None:
        raise _refused("a parallelism_config", _REPLICATE)
    if state.mixed_precision not in PRECISIONS:
        raise _refused(
            f"mixed_precision={state.mixed_precision!r}", f"use one of {', '.join(PRECISIONS)}"
        )
    backend = str(state.dynamo_plugin.backend.value)
    if backend != "NO":
        raise _refused(
            f"the dynamo backend {backend}", "compile modules by Config(compile=True) instead"
        )
    if config.backend == "gloo" and state.device.type != "cpu":
        raise _refused(
            f"the device {state.device}",
            "EngineConfig(backend='gloo') computes on the CPU; leave one of the two out, or use "
            "Accelerator(cpu=True)",
        )


def _require_everyone(counted: int) -> None:
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world != counted:
        raise ConfigurationError(
            f"The Accelerator counts {counted} process(es), but torch.distributed has {world}. "
            "Without GPUs it needs cpu=True: make it by Accelerator(cpu=True) before anything else "
            "of accelerate is used, or leave it to EngineConfig(strategy='accelerate')."
        )


def _refused(asked: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        f"The Accelerator of EngineConfig(strategy='accelerate') asks for {asked}, but {remedy}."
    )
