"""Records of finished runs: one JSON file a run, in a folder for each setting and budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .files import write_text
from .methods import Method
from .run import Run
from .training import asked


class OtherRunError(ValueError):
    """A record of the same name was made with other settings."""


class Store:
    """The records in a folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run: Run) -> Path:
        """Return the file of a run."""
        return self.path_of(run.method, run.seed)

    def path_of(self, method: Method, seed: int) -> Path:
        """Return the file of the run of a method."""
        return self.folder / f"{method.name.replace('/', '_')}-seed{seed}.json"

    def state_of(self, run: Run) -> Path:
        """Return the folder of the state of a run that is not finished."""
        return self.path(run).with_suffix("")

    def read(self, run: Run) -> dict[str, Any] | None:
        """Return the record of a run; ``None`` if it is not finished.

        Raises:
            OtherRunError: When the record was made with other settings.
        """
        record = self.read_named(run.method, run.seed)
        if record is None:
            return None
        mine = json.loads(json.dumps(asked(run)))
        found = _difference(record["asked"], mine)
        if found is not None:
            name, theirs, ours = found
            raise OtherRunError(
                f"{self.path(run)} was made with {name}={theirs}, and {ours} was asked for; use "
                "another --out, or remove the file."
            )
        return record

    def read_named(self, method: Method, seed: int) -> dict[str, Any] | None:
        """Return the record of the run of a method, whatever its other settings."""
        path = self.path_of(method, seed)
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def write(self, run: Run, record: Mapping[str, Any]) -> None:
        """Write the record of a finished run."""
        write_text(self.path(run), to_text(record))

    @contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Keep other processes from a run inside; ``False`` where another one has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path(run).with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            if self.path(run).is_file():
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def to_text(record: Mapping[str, Any]) -> str:
    """Return a record as JSON with a line for each of its parts."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _difference(theirs: Any, ours: Any, name: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            found = _difference(theirs.get(key), ours.get(key), key)
            if found is not None:
                return found
        return None
    return None if theirs == ours else (name, theirs, ours)
