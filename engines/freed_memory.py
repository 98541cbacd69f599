"""What the C library does with memory that a step frees."""

from __future__ import annotations

from contextlib import suppress

import torch

_LARGEST = 2**25 - 2**16
"""Bytes: as much as one block may have for glibc to learn from it, less what it adds."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees, for the next step.

    glibc returns the free end of its heap to the system when it is longer than twice the largest
    block the system ever gave it directly. The next step then waits for the system to map, and to
    fill with zeros, page after page. After this call glibc keeps up to 64 MiB, and takes blocks of
    less than 32 MiB from its heap. That holds for the process, as if it had once freed a tensor of
    that size. The block is never written to, so that it occupies no memory.

    Nothing changes for other allocators, nor where the environment sets ``MALLOC_TRIM_THRESHOLD_``
    or ``MALLOC_MMAP_THRESHOLD_``.
    """
    # A tensor would be filled where torch is to be deterministic. Where there is not that much
    # memory, there is none to keep.
    with suppress(RuntimeError):
        torch.UntypedStorage(_LARGEST, device="cpu")  # type: ignore[no-untyped-call]
