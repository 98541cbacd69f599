"""Memory: what is free for tensors on a device, and sizes in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free for tensors on a device; ``None`` where nobody says.

    On a CUDA device that is what the driver has left, and what torch holds without a use for it. On
    the host it is what Linux counts as available, within the limits of the control groups (of a
    container, say) that the process is in.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    return free_on_host(ROOT) if device.type == "cpu" else None


def free_on_host(root: Path) -> int | None:
    """Return the bytes that are free on the host whose files of state are below ``root``."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    found = [] if available is None else [1024 * int(available[1])]
    return min([*found, *_left_by_groups(root)], default=None)


def shown_bytes(size: int) -> str:
    """Return a number of bytes in a unit that leaves at most three digits before the point."""
    power = min((len(str(size)) - 1) // 3, 3)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each control group with a limit, of the process or around it, has left."""
    mounted = root / "sys/fs/cgroup"
    groups = re.findall(r"^\d+:(memory)?:/(.*)$", _read(root / "proc/self/cgroup"), re.MULTILINE)
    for controller, path in groups or [("", "")]:
        # Version 1 has a tree for each controller, version 2 one for all.
        top = mounted / controller
        # Inside a container the group may stand at the top, though its path says otherwise.
        for folder in dict.fromkeys([top, *(top / path, *(top / path).parents)]):
            if folder == top or top in folder.parents:
                yield from _left_by(folder, is_first=controller == "memory")


def _left_by(folder: Path, *, is_first: bool) -> Iterator[int]:
    limit, usage, cache = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if is_first
        else ("memory.max", "memory.current", "inactive_file")
    )
    most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if most.isdigit() and used.isdigit():
        # What is kept of files is given up before a limit is reached.
        kept = re.search(rf"^{cache} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
        yield max(int(most) - int(used) + (0 if kept is None else int(kept[1])), 0)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeError):
        return ""
