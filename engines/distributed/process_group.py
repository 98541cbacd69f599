"""Joining the process group that ``torchrun`` or ``accelerate launch`` prepares."""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist
from metaweight.problems import ConfigurationError
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from ..program.config import EngineConfig
from .processes import Processes, SeveralProcesses
from .zero import ShardingProcesses

MULTI_PROCESS = ("distributed", "zero", "fsdp", "accelerate")
FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def device_of_process(config: EngineConfig) -> torch.device:
    """Return the device of this process: its own GPU where torch sees GPUs, or else the CPU.

    Raises:
        ConfigurationError: When there are fewer GPUs than processes on this machine.
    """
    if config.backend == "gloo" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, number = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= number:
        raise ConfigurationError(
            f"EngineConfig(strategy={config.strategy!r}) gives every process a GPU of its own, but "
            f"process {local} of this machine finds {number}; start as many processes as there are "
            "GPUs (torchrun --nproc-per-node), or use backend='gloo' to compute on the CPU."
        )
    return torch.device("cuda", local)


def join_processes(config: EngineConfig, device: torch.device) -> Processes:
    """Return the processes the program runs in; waits until all have come.

    A process group that has been initialised is used as it is.

    Raises:
        ConfigurationError: When a strategy of several processes was not started as such.
    """
    alone = config.strategy == "accelerate" and not (dist.is_available() and dist.is_initialized())
    if config.strategy not in MULTI_PROCESS or alone:
        # An Accelerator has made the group, where it has found several processes.
        return Processes()
    if not dist.is_available():
        raise ConfigurationError(
            f"EngineConfig(strategy={config.strategy!r}) needs torch.distributed, which this build "
            "of torch lacks; install another, or use strategy='default'."
        )
    if not dist.is_initialized():
        absent = [name for name in FROM_TORCHRUN if name not in os.environ]
        if absent:
            raise ConfigurationError(
                f"EngineConfig(strategy={config.strategy!r}) runs in several processes, but "
                f"{', '.join(absent)} is not set in the environment; start the script by "
                "'torchrun --nproc-per-node=N script.py', or use strategy='default'."
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # The store of a launcher may outlive its workers: those that are started again must not
        # read the addresses of those that were killed.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store, rank, world = next(rendezvous("env://"))
        dist.init_process_group(
            "gloo" if device.type == "cpu" else f"cpu:gloo,cuda:{config.backend}",
            store=PrefixStore(f"attempt {attempt}", store),
            rank=rank,
            world_size=world,
        )
        atexit.register(leave)
    if dist.get_world_size() == 1:
        return Processes()
    if config.strategy == "fsdp":
        from .fsdp import FullyShardingProcesses  # noqa: PLC0415 (slow to import)

        return FullyShardingProcesses(device)
    return ShardingProcesses(device) if config.strategy == "zero" else SeveralProcesses(device)


def leave() -> None:
    """Leave the process group, if there is one."""
    # What still waits for messages when the interpreter ends is ended with an abort, now and then,
    # and the launcher takes a process that has done its work for one that has failed.
    if dist.is_initialized():
        dist.destroy_process_group()
