"""What the loaders of official data files have in common when a file cannot be had."""

from __future__ import annotations

import http.client

UNREADABLE = (RuntimeError, OSError, http.client.HTTPException)
"""What torchvision's loaders raise when a file is missing, altered or cannot be downloaded."""


class DatasetUnavailableError(RuntimeError):
    """Data that were asked for are neither on this machine nor could be downloaded."""


def download_failure(error: Exception) -> str:
    """Say in half a sentence that downloading failed, with the first line of ``error``."""
    first_line = (str(error).splitlines() or [""])[0].rstrip(". ")
    return f"downloading it failed ({first_line or type(error).__name__})"
