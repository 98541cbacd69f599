"""Join the process group that ``torchrun`` or ``accelerate launch`` prepares."""

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
    """Return the device of this process: a GPU of its own if torch sees GPUs, else the CPU.

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
    """Return the processes of the program; waits for all of them.

    An initialised process group is used unchanged.

    Raises:
        ConfigurationError: When a strategy for several processes was not started by a launcher.
    """
    alone = config.strategy == "accelerate" and not (dist.is_available() and dist.is_initialized())
    if config.strategy not in MULTI_PROCESS or alone:
        # With several processes, the Accelerator has made the group.
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
        # The store of a launcher may outlive its workers: restarted workers must not read the
        # addresses of killed ones.
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
    kind = ShardingProcesses if config.strategy == "zero" else SeveralProcesses
    if config.strategy == "fsdp":
        from .fsdp import FullyShardingProcesses  # noqa: PLC0415 (slow to import)

        kind = FullyShardingProcesses
    return kind(device, sync_batch_norm=config.sync_batch_norm)


def leave() -> None:
    """Leave the process group, if there is one."""
    # A group that still waits for messages when the interpreter exits sometimes aborts the process,
    # and the launcher then reports a failure.
    if dist.is_initialized():
        dist.destroy_process_group()
