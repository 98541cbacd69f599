"""Starting two processes, and what they found compared."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .fork_server import start_module

HELPERS = Path(__file__).parents[1]
SECONDS = 180

# Sums are taken in another order, and differences divided by the length of a displacement.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def place_of(rank: int, port: int, world: int = 2) -> dict[str, str]:
    """The environment ``torchrun`` gives to one of several processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def found_together(
    folder: Path, module: str = "support.each_process", *names: str, world: int = 2
) -> list[dict[str, Any]]:
    """What each process found in a module's checks: all of them, or those named."""
    port = free_port()
    started = [
        start_module(module, str(folder), *names, env={**os.environ, **place_of(rank, port, world)})
        for rank in range(world)
    ]
    ended = [each.wait(SECONDS) for each in started]
    said = "\n".join(each.stderr for each in ended)
    assert [each.returncode for each in ended] == [0] * world, said
    return [torch.load(folder / f"found_{rank}.pt", weights_only=True) for rank in range(world)]


def launched(launcher: list[str], script: Path, *arguments: str) -> Any:
    """Run a script in two processes and wait for them."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(HELPERS)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def same(together: list[dict[str, Any]], name: str, alone: Any) -> None:
    """Both processes found the same, to the bit, and one process the same to rounding."""
    first, second = (found[name] for found in together)
    assert not isinstance(first, str), first
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, alone, **CLOSE)
