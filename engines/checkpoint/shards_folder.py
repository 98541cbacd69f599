"""The folder of shards beside a checkpoint's file: verify and remove it."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaweight.problems import CheckpointError, DamagedCheckpointError

FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
TOKEN = "[0-9a-f]{16}"
CHUNK = 1 << 20


def require_shards(path: Path, state: Mapping[str, Any]) -> None:
    """Verify the checksums of the shards beside ``path``, if its state names any.

    Raises:
        DamagedCheckpointError: When a file is missing or damaged.
        CheckpointError: When a name is not one of this checkpoint.
    """
    described = state.get("shards")
    if described is None:
        return
    require_names(path, described)
    folder = path.with_name(described["folder"])
    for name, digest in described["files"].items():
        if not (folder / name).is_file() or checksum_of(folder / name) != digest:
            raise DamagedCheckpointError(
                f"{folder / name}, a part of the checkpoint {path.name}, is missing or damaged; "
                "use another checkpoint, and move a checkpoint together with its folder."
            )


def require_names(path: Path, described: Any) -> None:
    """Refuse names of a folder or of files that are not this checkpoint's.

    Raises:
        CheckpointError: For such a name.
    """
    try:
        own = re.fullmatch(rf"{re.escape(path.name)}\.shards-{TOKEN}", described["folder"])
        fit = own is not None and all(FILE.fullmatch(name) for name in described["files"])
    except (LookupError, TypeError):
        fit = False
    if not fit:
        raise CheckpointError(
            f"{path} names shards that are not its own; it was not written by metaweight, or it "
            "was renamed: keep the names of a checkpoint and of its folder."
        )


def remove_shards(path: Path, keep: str | None = None) -> None:
    """Remove the folders of shards of ``path``, except ``keep``."""
    for folder in _listed(path.parent):
        if folder.name != keep and _file_of(folder) == path.name:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove shards whose checkpoint file does not exist."""
    for shards in _listed(folder):
        file = _file_of(shards)
        if file is not None and not (folder / file).exists():
            shutil.rmtree(shards, ignore_errors=True)


def checksum_of(file: Path) -> str:
    """Return a checksum of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _listed(folder: Path) -> list[Path]:
    # A glob of its own for every name would fill pathlib's caches.
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _file_of(folder: Path) -> str | None:
    """Return the name of the checkpoint that a folder of shards belongs to, else ``None``."""
    found = re.fullmatch(rf"(.+)\.shards-{TOKEN}", folder.name)
    return None if found is None else found[1]
