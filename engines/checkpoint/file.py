"""The file of a checkpoint: a header, then plain data as ``torch.save`` writes it.

The header has :data:`HEADER` bytes and holds one JSON object: format, versions, step, and a
checksum of header and data, which is verified before the data are read. The data are read by
``torch.load(weights_only=True)``, which builds only tensors, numbers, text and containers.

Writing is atomic and durable: a temporary file is written, synced to disk and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from metaweight.problems import CheckpointError, DamagedCheckpointError

from .migrations import FORMAT, MIGRATIONS, migrate
from .shards_folder import require_shards

MAGIC = b"metaweight checkpoint "
HEADER = 2048
CHUNK = 1 << 20


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 (slow to import)

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Manifest:
    """The header of a checkpoint.

    Attributes:
        step: ``engine.global_step``.
        run: Identifier of the run.
        metric: Name of the value it is ranked by, if any.
        value: That value; ``None`` if it was not finite.
        format: Version of the format.
        versions: Versions of metaweight, torch and Python.
    """

    step: int
    run: str
    metric: str | None = None
    value: float | None = None
    format: int = FORMAT
    versions: Mapping[str, str] = field(
        default_factory=lambda: {
            "metaweight": _version("metaweight"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        }
    )


def write_checkpoint(path: Path, manifest: Manifest, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: ``path`` holds either all of it or its previous content.

    Raises:
        CheckpointError: When it cannot be written; no partial file is left.
    """

    def write(file: BinaryIO) -> None:
        file.write(b" " * HEADER)
        hashing = _Hashing(file)
        try:
            torch.save(dict(state), cast(IO[bytes], hashing))
        except Exception as error:
            raise hashing.failure or error from None
        file.seek(0)
        file.write(_header(manifest, hashing.digest()))

    try:
        write_durably(path, write)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {_reason(error)}. A previous file is "
            "unchanged; free disk space, or give a folder that can be written to."
        ) from error


def write_durably(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call ``write`` with a temporary file beside ``path``, sync it, and rename it to ``path``.

    Raises:
        OSError: When that fails; the temporary file is removed.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, except on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(path: Path) -> Manifest:
    """Return the header of a checkpoint; the data are not read.

    Raises:
        CheckpointError: When it does not exist, is no checkpoint, or has a newer format.
    """
    with _opened(path) as file:
        return _parsed(path, file.read(HEADER))[0]


def read_checkpoint(
    path: Path,
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = MIGRATIONS,
) -> tuple[Manifest, dict[str, Any]]:
    """Return the header and the state of a checkpoint, in the present format.

    Args:
        path: The file.
        migrations: Convert the state of each earlier format into the next one.

    Raises:
        CheckpointError: When it does not exist, is no checkpoint, is damaged, or has a format that
            cannot be migrated.
    """
    with _opened(path) as file:
        manifest, expected = _parsed(path, file.read(HEADER))
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if _checksum(manifest, digest.hexdigest()) != expected:
            raise DamagedCheckpointError(
                f"{path} is damaged: its checksum does not fit its content, so it was truncated or "
                "changed after it was written; use another checkpoint."
            )
        file.seek(HEADER)
        try:
            behind = cast(IO[bytes], _AfterHeader(file, HEADER))
            state = torch.load(behind, map_location="cpu", weights_only=True)
        # The zip reader, the unpickler and the tensors raise errors of many types.
        except Exception as error:
            raise CheckpointError(
                f"{path} holds something other than plain data, so it was not written by "
                f"metaweight ({type(error).__name__}); use another checkpoint."
            ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no state of an engine; use another checkpoint.")
    require_shards(path, state)
    return manifest, migrate(path, manifest.format, state, migrations)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} could not be opened: {_reason(error)}; give the path of a file "
            "that engine.save or a run with a checkpoint_dir has written."
        ) from error


def _header(manifest: Manifest, content: str) -> bytes:
    facts = asdict(manifest) | {"sha256": _checksum(manifest, content)}
    text = MAGIC + json.dumps(facts, sort_keys=True, allow_nan=False).encode()
    assert len(text) < HEADER
    return text.ljust(HEADER - 1) + b"\n"


def _checksum(manifest: Manifest, content: str) -> str:
    facts = json.dumps(asdict(manifest), sort_keys=True, allow_nan=False)
    return hashlib.sha256(f"{facts} {content}".encode()).hexdigest()


def _parsed(path: Path, header: bytes) -> tuple[Manifest, str]:
    """Return the manifest and checksum of a header, which must be exactly as it was written."""
    damaged = DamagedCheckpointError(
        f"{path} is no checkpoint of metaweight, or its first lines are damaged; give a file "
        "that engine.save or a run with a checkpoint_dir has written."
    )
    try:
        facts = json.loads(header.removeprefix(MAGIC))
        text = MAGIC + json.dumps(facts, sort_keys=True).encode()
        written, seal = facts["format"], facts.pop("sha256")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise damaged from None
    if type(written) is not int or header != text.ljust(HEADER - 1) + b"\n":
        raise damaged
    if written > FORMAT:
        raise CheckpointError(
            f"{path} is of format {written}, of a newer metaweight; this one reads up to format "
            f"{FORMAT}. Install the newer version."
        )
    try:
        return Manifest(**facts), seal
    except TypeError:
        raise damaged from None


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or type(error).__name__).rstrip(".").lower()


class _Hashing:
    """A writable file that computes a checksum and stores the error of a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self._sum.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._sum.hexdigest()


class _AfterHeader:
    """A file whose positions are counted from the end of the header."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._start = start

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self) -> bytes:
        return self._file.readline()

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            return self._file.seek(offset + self._start) - self._start
        return self._file.seek(offset, whence) - self._start
