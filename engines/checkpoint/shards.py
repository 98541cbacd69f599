"""What processes share out of a program's state, in a folder beside the checkpoint's file.

``torch.distributed.checkpoint`` writes the parts, every process its own to a file, and puts
them together again for any number of processes. It would describe them in a pickle, which whoever
reads it executes: that is neither written nor read here. The description stands in the checkpoint
as plain data, with a checksum of every file, and is believed only where it fits the files.

The folder has a name of its own each time, is complete before the checkpoint that names it is
renamed into place, and is removed after it.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import CheckpointError, Problem
from torch import Tensor

from ..distributed.processes import Processes
from ..distributed.shard_layout import ShardLayout
from .file import sync_folder
from .shards_folder import holder_of, sum_of

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

Place = tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """This process's part of a tensor of the state.

    Attributes:
        place: The keys that lead to the tensor.
        layout: How it is shared out.
        values: The part.
    """

    place: Place
    layout: ShardLayout
    values: Tensor

    @property
    def name(self) -> str:
        """The tensor's name in the folder."""
        return ".".join(map(str, self.place))


def take_parts(
    layouts: Mapping[Tensor, ShardLayout], problems: Sequence[Problem], state: Mapping[str, Any]
) -> list[Part]:
    """Take parameters and optimizer states that are shared out from a state, leaving nothing there.

    Args:
        layouts: How each parameter is shared out.
        problems: The problems.
        state: Their state by name, as plain data: whole modules, parts of optimizer states.
    """
    found: list[Part] = []
    for problem in problems:
        saved = state[problem.name]["state"]
        named = dict(problem.module.named_parameters(remove_duplicate=False))
        for name, parameter in named.items():
            layout = layouts.get(parameter)
            holder, key = holder_of(saved.get("module", {}), name)
            if layout is not None and layout.is_whole(holder.get(key)):
                place: Place = (problem.name, "state", "module", name)
                found.append(Part(place, layout, layout.part(holder[key])))
                holder[key] = None
        groups = () if problem.optimizer is None else problem.optimizer.param_groups
        parameters = dict(enumerate(p for group in groups for p in group["params"]))
        for number, entries in saved.get("optimizer", {}).get("state", {}).items():
            layout = layouts.get(parameters[number])
            for name in entries:
                place = (problem.name, "state", "optimizer", "state", number, name)
                holder, key = holder_of(entries, name)
                if layout is not None and layout.is_part(holder.get(key)):
                    found.append(Part(place, layout, holder[key]))
                    holder[key] = None
    return found


def write_parts(processes: Processes, path: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """Write the parts of all processes to a new folder, and return its description; all call this.

    Raises:
        CheckpointError: In all processes, when one cannot write or they do not see one folder;
            nothing is left behind then.
    """
    token = processes.from_first(lambda: secrets.token_hex(8))
    folder = path.with_name(f"{path.name}.parts-{token}")
    try:
        processes.from_first(folder.mkdir)
        described = _written(processes, folder, parts)
        processes.from_first(lambda: _brought_to_disk(folder))
    except (OSError, CheckpointError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(
            f"The parts of a checkpoint could not be written to {folder}: {_reason(error)}. What "
            "was there before is untouched; make room, or give a folder that all processes can "
            "write to."
        ) from error
    return {"folder": folder.name, **described}


def _written(processes: Processes, folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    # Slow to import.
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # noqa: PLC0415
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.tensor import DTensor, Shard  # noqa: PLC0415

    class Writer(FileSystemWriter):
        """Keeps what it would write as a pickle."""

        chunks: dict[str, list[list[Any]]] | None = None

        def finish(self, metadata: Metadata, results: Any) -> None:
            stored = {r.index: r.storage_data for each in results for r in each}
            self.chunks = {}
            for index, at in stored.items():
                described = metadata.state_dict_metadata[index.fqn]
                assert isinstance(described, TensorStorageMetadata)
                size = next(c.sizes[0] for c in described.chunks if c.offsets == index.offset)
                chunk = [index.offset[0], size, at.relative_path, at.offset, at.length]
                self.chunks.setdefault(index.fqn, []).append(chunk)

    mesh = init_device_mesh("cpu", (processes.world,))
    state = {
        part.name: DTensor.from_local(
            part.values,
            mesh,
            [Shard(0)],
            run_check=False,
            shape=torch.Size((part.layout.numel,)),
            stride=(1,),
        )
        for part in parts
    }
    writer = Writer(folder)
    try:
        save(state, storage_writer=writer)
    except (RuntimeError, CheckpointException) as error:
        raise CheckpointError(_reason(error)) from error
    own = {file.name: sum_of(file) for file in folder.glob(f"__{processes.rank}_*.distcp")}
    sums = {name: digest for each in processes.gather(own) for name, digest in each.items()}
    _require_one_folder(processes, folder, sums)
    chunks = writer.chunks or {}
    return {
        "files": sums,
        "tensors": [
            {
                "place": part.place,
                "shape": tuple(part.layout.shape),
                "stride": part.layout.stride,
                "dtype": part.values.dtype,
                "chunks": chunks.get(part.name, []),
            }
            for part in parts
        ],
    }


def _require_one_folder(processes: Processes, folder: Path, files: Mapping[str, str]) -> None:
    if not all(processes.gather(all((folder / name).is_file() for name in files))):
        raise CheckpointError("the processes do not see each other's files there")


def _brought_to_disk(folder: Path) -> None:
    sync_folder(folder)
    sync_folder(folder.parent)


def _reason(error: BaseException) -> str:
    """Return why, of an error of one process or of those that all processes heard of."""
    heard = getattr(error, "failures", {})
    first = next((failure for failure, _ in heard.values()), error)
    return str(getattr(first, "strerror", None) or first).rstrip(".").lower()
