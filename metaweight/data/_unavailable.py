"""Errors of the loaders of official data files when a file is unavailable."""

from __future__ import annotations

import http.client

UNREADABLE = (RuntimeError, OSError, http.client.HTTPException)
"""Errors that torchvision's loaders raise for files missing, altered or not downloadable."""


class DatasetUnavailableError(RuntimeError):
    """Raised when a data set is not on this machine and could not be downloaded."""


def download_failure(error: Exception) -> str:
    """Return a clause saying that the download failed, with the first line of ``error``."""
    first_line = (str(error).splitlines() or [""])[0].rstrip(". ")
    return f"downloading it failed ({first_line or type(error).__name__})"
