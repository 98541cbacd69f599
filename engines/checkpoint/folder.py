"""A folder with the checkpoints of one run: the last ones and the best ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaweight.problems import CheckpointError, DamagedCheckpointError

from .file import Manifest, read_checkpoint, read_manifest
from .shards_folder import remove_abandoned, remove_shards

NAME = re.compile(r"step-(\d{10,})\.ckpt")


@dataclass(frozen=True)
class CheckpointFolder:
    """Files ``step-<global step>.ckpt`` in a folder.

    Args:
        path: The folder.
        keep_last: Number of last checkpoints to keep; ``None`` keeps all.
        keep_best: Number of best checkpoints to keep beside those.
        metric: Name of the value that ranks checkpoints.
        mode: ``"min"`` or ``"max"``: whether the smallest or the largest value is best.
    """

    path: Path
    keep_last: int | None = None
    keep_best: int = 0
    metric: str = "loss"
    mode: str = "min"

    def file_of(self, step: int) -> Path:
        """Return the path of a step's checkpoint."""
        return self.path / f"step-{step:010d}.ckpt"

    def files(self) -> dict[int, Path]:
        """Return the paths of all checkpoints by step, in ascending order."""
        if not self.path.is_dir():
            return {}
        found = {p: NAME.fullmatch(p.name) for p in self.path.iterdir()}
        steps = {int(match[1]): p for p, match in found.items() if match is not None}
        return dict(sorted(steps.items()))

    def prepare(self, run: str, step: int) -> None:
        """Make the folder and check that a run at ``step`` can write to it.

        Raises:
            CheckpointError: When it cannot be written to, or holds checkpoints of another run or
                of later steps.
        """
        probe = self.path / ".probe.partial"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            for partial in self.path.glob(".*.partial"):
                partial.unlink()
            remove_abandoned(self.path)
        except OSError as error:
            raise CheckpointError(
                f"EngineConfig(checkpoint_dir={str(self.path)!r}) cannot be written to: "
                f"{error.strerror or error}; give a folder that can."
            ) from error
        for number, file in self.files().items():
            manifest = _manifest(file)
            if manifest is None or manifest.run != run:
                raise CheckpointError(
                    f"EngineConfig(checkpoint_dir={str(self.path)!r}) holds checkpoints of another "
                    f"run, such as {file.name}; resume it by run(resume='auto'), or give this run "
                    "a folder of its own."
                )
            if number > step:
                raise CheckpointError(
                    f"EngineConfig(checkpoint_dir={str(self.path)!r}) holds {file.name}, a later "
                    f"step of this run than step {step}, from which it would resume; move the "
                    "later files away, or give another folder."
                )

    def newest(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """Return the last checkpoint that is not damaged, and its state; ``None`` if there is none.

        Damaged checkpoints are renamed, with a warning.

        Raises:
            CheckpointError: When all checkpoints are damaged.
        """
        files = self.files()
        for file in reversed(list(files.values())):
            try:
                return file, read_checkpoint(file)[1]
            except DamagedCheckpointError as error:
                aside = file.with_name(f"{file.name}.damaged")
                file.replace(aside)
                warn(f"{error} It was renamed to {aside.name}; the one before it is tried.")
        if files:
            raise CheckpointError(
                f"All checkpoints in {self.path} are damaged, so run(resume='auto') cannot "
                "resume; run without resume in another folder."
            )
        return None

    def is_among_best(self, run: str, value: float) -> bool:
        """Return whether a checkpoint with this value would be among the best."""
        if not self.keep_best or not math.isfinite(value):
            return False
        ranked = self._ranked(self._of(run))
        if len(ranked) < self.keep_best:
            return True
        worst = ranked[self.keep_best - 1][1].value
        assert worst is not None
        return value < worst if self.mode == "min" else value > worst

    def prune(self, run: str) -> None:
        """Remove checkpoints of a run that are neither among the last nor among the best."""
        if self.keep_last is None:
            return
        files = self._of(run)
        kept = {file for file, _ in files[-self.keep_last :]}
        kept |= {file for file, _ in self._ranked(files)[: self.keep_best]}
        for file, _ in files:
            if file not in kept:
                with suppress(OSError):
                    file.unlink()
                remove_shards(file)

    def _of(self, run: str) -> list[tuple[Path, Manifest]]:
        found = [(file, _manifest(file)) for file in self.files().values()]
        return [(file, m) for file, m in found if m is not None and m.run == run]

    def _ranked(self, files: list[tuple[Path, Manifest]]) -> list[tuple[Path, Manifest]]:
        """Return those with a value of the metric, best first; of equal ones the earlier first."""
        sign = 1.0 if self.mode == "min" else -1.0
        valued = [
            (sign * manifest.value, file, manifest)
            for file, manifest in files
            if manifest.metric == self.metric and manifest.value is not None
        ]
        return [(file, manifest) for _, file, manifest in sorted(valued, key=lambda v: v[0])]


def _manifest(file: Path) -> Manifest | None:
    try:
        return read_manifest(file)
    except CheckpointError:
        return None
