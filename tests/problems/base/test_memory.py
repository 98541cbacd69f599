"""The memory that is free, read from files of state as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from metaweight.problems.base.memory import free_memory, free_on_host

MEMINFO = "MemTotal:       24689764 kB\nMemFree:         1048576 kB\nMemAvailable:    2048 kB\n"
AVAILABLE = 2048 * 1024


def host(root: Path, files: dict[str, str]) -> int | None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return free_on_host(root)


def test_the_system_says_what_is_available(tmp_path: Path) -> None:
    assert host(tmp_path, {"proc/meminfo": MEMINFO}) == AVAILABLE


def test_nobody_says(tmp_path: Path) -> None:
    assert host(tmp_path, {}) is None
    assert free_memory(torch.device("meta")) is None


def group(folder: str, limit: object, used: int, cache: int = 0) -> dict[str, str]:
    """A control group of version 2."""
    return {
        f"sys/fs/cgroup{folder}/memory.max": f"{limit}\n",
        f"sys/fs/cgroup{folder}/memory.current": f"{used}\n",
        f"sys/fs/cgroup{folder}/memory.stat": f"anon 7\ninactive_file {cache}\nfile 9\n",
    }


@pytest.mark.parametrize(
    ("inner", "outer", "free"),
    [
        (group("/job/run", 1000, 400, 50), group("/job", 5000, 400), 650),
        (group("/job/run", "max", 400), group("/job", 5000, 4900), 100),
        (group("/job/run", "max", 400), group("/job", "max", 4900), AVAILABLE),
        (group("/job/run", 1000, 1200), group("/job", "max", 4900), 0),
    ],
)
def test_the_narrowest_limit_counts(
    inner: dict[str, str], outer: dict[str, str], free: int, tmp_path: Path
) -> None:
    own = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/job/run\n"}
    assert host(tmp_path, {**own, **inner, **outer}) == free


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    for own in ({}, {"proc/self/cgroup": "0::/../../else/where\n"}):
        assert host(tmp_path, {"proc/meminfo": MEMINFO, **own, **group("", 900, 300)}) == 600


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "12:cpu,cpuacct:/x\n11:memory:/docker/abc\n1:name=systemd:/x\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "700\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 5\ntotal_inactive_file 40\n",
    }
    assert host(tmp_path, files) == 340


def test_a_card_has_what_the_driver_and_torch_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("mem_get_info", (100, 1000)),
        ("memory_reserved", 70),
        ("memory_allocated", 30),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda", 0)) == 140


def test_this_host_has_some() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 0
