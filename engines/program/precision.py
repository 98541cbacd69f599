"""The precision in which a device computes fastest."""

from __future__ import annotations

from pathlib import Path

import torch
from metaweight.problems.data.validation import checked_device

# Extensions of processors that multiply matrices of bfloat16.
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
# Where Linux lists a processor's extensions.
CPUINFO = Path("/proc/cpuinfo")


def fastest_precision(device: torch.device | str) -> str:
    """Return the fastest precision that needs no loss scaling, for ``EngineConfig(precision=...)``.

    ``"bf16"`` on a GPU that computes in bfloat16 itself, and on a CPU with AVX512-BF16 or AMX, for
    which torch's oneDNN has faster convolutions and matrix products; ``"fp32"`` on others. A small
    network may be faster in ``"fp32"`` in any case.

    Args:
        device: The device, or its name.

    Raises:
        ConfigurationError: For a device that torch does not know or that is not available.
    """
    found = checked_device("fastest_precision", device)
    supported = False
    if found.type == "cuda":
        with torch.cuda.device(found):
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif found.type == "cpu":
        one_dnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        supported = one_dnn and bool(BFLOAT16 & _cpu_extensions())
    return "bf16" if supported else "fp32"


def _cpu_extensions() -> set[str]:
    # Earlier releases of torch do not tell.
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return {name for name, has in ask().items() if has is True}
    return set(CPUINFO.read_text().split()) if CPUINFO.is_file() else set()
