"""The folder of shards beside a checkpoint's file: whether it is as it was written, and removed."""

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
    """See that the shards beside ``path``, if its state names some, are as they were written.

    Raises:
        DamagedCheckpointError: When a file is missing or not as it was written.
        CheckpointError: When names lead elsewhere.
    """
    described = state.get("shards")
    if described is None:
        return
    require_names(path, described)
    folder = path.with_name(described["folder"])
    for name, digest in described["files"].items():
        if not (folder / name).is_file() or checksum_of(folder / name) != digest:
            raise DamagedCheckpointError(
                f"{folder / name} is missing or damaged, which belongs to the checkpoint beside "
                "it; use another checkpoint, and move a checkpoint together with its folder."
            )


def require_names(path: Path, described: Any) -> None:
    """Refuse names of a folder or of files that are not this checkpoint's.

    Raises:
        CheckpointError: When they are not.
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
    """Remove the folders of shards beside ``path``, but one."""
    for folder in _listed(path.parent):
        if folder.name != keep and _file_of(folder) == path.name:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove shards of checkpoints that have never been completed or are no more."""
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
    """Return the name of the file that a folder has shards of, or nothing for any other path."""
    found = re.fullmatch(rf"(.+)\.shards-{TOKEN}", folder.name)
    return None if found is None else found[1]
