"""The folder of parts of tensors beside a checkpoint's file: read, believed or not, and removed.

Its files are those of ``torch.distributed.checkpoint``, whose reader puts the parts together. What
that would read from a pickle, where each part is, comes from the checkpoint as plain data.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import CheckpointError, DamagedCheckpointError
from torch import Tensor

from ..distributed.shard_layout import ShardLayout

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

FILE = re.compile(r"__\d+_\d+\.distcp")
TOKEN = "[0-9a-f]{16}"
CHUNK = 1 << 20


@dataclass(frozen=True)
class StoredAt:
    """Where the bytes of a part are: what the reader of the files asks for."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


def read_parts(path: Path, state: dict[str, Any]) -> None:
    """Put tensors that lie in the folder beside ``path`` into its state, whole.

    Raises:
        DamagedCheckpointError: When a file of the folder is missing or not as it was written.
        CheckpointError: When the description is not one that metaweight writes.
    """
    described = state.pop("parts", None)
    if described is None:
        return
    try:
        folder, files, tensors = (described[key] for key in ("folder", "files", "tensors"))
        _require_names(path, folder, files)
        sizes = _sizes(path.with_name(folder), files)
        for tensor in tensors:
            _require_fit(tensor, sizes)
        values = _read(path.with_name(folder), tensors)
        for tensor in tensors:
            layout = ShardLayout(torch.Size(tensor["shape"]), tuple(tensor["stride"]), 0, 1)
            *way, last = tensor["place"]
            holder = state["problems"]
            for key in way:
                holder = holder[key]
            holder, last = holder_of(holder, last)
            if holder[last] is not None:
                raise ValueError(f"{tensor['place']} is in the file already")
            holder[last] = layout.whole(values[name_of_tensor(tensor)])
    except DamagedCheckpointError:
        raise
    # Of every kind: what is described may be anything, and the tensors' reader has its own, one of
    # which is not even an Exception.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise CheckpointError(
            f"{path} describes parts of tensors that do not fit its folder; it was not written by "
            f"metaweight ({type(error).__name__})."
        ) from error


def remove_parts(path: Path, keep: str | None = None) -> None:
    """Remove the folders of parts beside ``path``, but one."""
    for folder in _listed(path.parent):
        if folder.name != keep and _file_of(folder) == path.name:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove parts of checkpoints that have never been completed or are no more."""
    for parts in _listed(folder):
        file = _file_of(parts)
        if file is not None and not (folder / file).exists():
            shutil.rmtree(parts, ignore_errors=True)


def _listed(folder: Path) -> list[Path]:
    # A glob of its own for every name would fill pathlib's caches.
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _file_of(folder: Path) -> str | None:
    """Return the name of the file that a folder has parts of, or nothing for any other path."""
    found = re.fullmatch(rf"(.+)\.parts-{TOKEN}", folder.name)
    return None if found is None else found[1]


def _read(folder: Path, tensors: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the values of each tensor in a row."""
    # Slow to import.
    from torch.distributed.checkpoint import metadata as facts  # noqa: PLC0415
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    class Reader(FileSystemReader):
        """Is told what it would read from a pickle."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            return described

    described = facts.Metadata(state_dict_metadata={}, storage_data={})
    values: dict[str, Tensor] = {}
    for tensor in tensors:
        name, numel = name_of_tensor(tensor), torch.Size(tensor["shape"]).numel()
        chunks = []
        for offset, size, file, at, length in tensor["chunks"]:
            begin = torch.Size((offset,))
            chunks.append(facts.ChunkStorageMetadata(begin, torch.Size((size,))))
            described.storage_data[facts.MetadataIndex(name, begin)] = StoredAt(file, at, length)
        properties = facts.TensorProperties(dtype=tensor["dtype"])
        described.state_dict_metadata[name] = facts.TensorStorageMetadata(
            properties, torch.Size((numel,)), chunks
        )
        values[name] = torch.empty(numel, dtype=tensor["dtype"])
    with warnings.catch_warnings():
        # That one process reads for all is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(dict(values), storage_reader=Reader(folder), no_dist=True)
    return values


def _require_names(path: Path, folder: Any, files: Any) -> None:
    """Refuse names that lead elsewhere."""
    if not re.fullmatch(rf"{re.escape(path.name)}\.parts-{TOKEN}", folder):
        raise ValueError(f"{folder!r} is no folder of this checkpoint")
    if not all(FILE.fullmatch(name) for name in files):
        raise ValueError("other files are named")


def _sizes(folder: Path, files: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes of files that are as they were written."""
    for name, digest in files.items():
        file = folder / name
        if not file.is_file() or sum_of(file) != digest:
            raise DamagedCheckpointError(
                f"{file} is missing or damaged, which is a part of the checkpoint beside it; use "
                "another checkpoint, and move a checkpoint together with its folder."
            )
    return {name: (folder / name).stat().st_size for name in files}


def _require_fit(tensor: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Refuse a tensor that its files cannot hold, before room is made for it."""
    shape, stride, dtype = tensor["shape"], tensor["stride"], tensor["dtype"]
    numel, reach = torch.Size(shape).numel(), 0
    for offset, size, file, at, length in sorted(tensor["chunks"]):
        within = 0 <= at <= at + length <= sizes[file]
        if offset != reach or size < 0 or not within or length < size * dtype.itemsize:
            raise ValueError("a part is not where it should be")
        reach += size
    if reach != numel or not _lies_densely(shape, stride):
        raise ValueError("parts do not make up the whole")


def _lies_densely(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size < 1 or (size > 1 and step != expected):
            return False
        expected *= size
    return True


def holder_of(values: Any, key: Any) -> tuple[Any, Any]:
    """Return where the tensor under ``key`` is: there, or labelled as one from a device."""
    found = values.get(key)
    return (found, "value") if isinstance(found, Mapping) and "value" in found else (values, key)


def name_of_tensor(tensor: Mapping[str, Any]) -> str:
    return ".".join(map(str, tensor["place"]))


def sum_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
