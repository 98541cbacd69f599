"""The fastest precision is what a device computes by itself."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.program import precision

from metaweight import ConfigurationError, fastest_precision


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx512_f": True, "architecture": "x86_64"}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_of_a_processor_that_torch_tells_of(
    has: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert fastest_precision("cpu") == fastest_precision(torch.device("cpu")) == expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fastest_precision("cpu") == "fp32"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags\t\t: fpu avx512_bf16 wp\n", "bf16"), ("flags : avx512f\n", "fp32"), (None, "fp32")],
)
def test_of_a_processor_that_only_the_system_tells_of(
    flags: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(flags)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(precision, "CPUINFO", info)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert fastest_precision("cpu") == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_of_a_gpu(supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that only emulates bfloat16 is no faster with it."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda d: asked.append(d) or nullcontext())
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: including_emulation or supported,
    )
    assert fastest_precision("cuda:1") == expected
    assert asked == [torch.device("cuda:1")]


def test_of_others_it_is_single() -> None:
    assert fastest_precision("meta") == "fp32"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", None])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"fastest_precision received device=.*; use one"):
        fastest_precision(device)
