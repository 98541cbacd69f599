"""Sharded tensors of a program's state, in safetensors files beside the checkpoint's file.

``torch.distributed.checkpoint`` writes them in its safetensors format, one file per process, and
reads them for any number of processes. The files hold tensors and their offsets in the whole, no
executable code. Other programs can read them too.

Each checkpoint has a folder with a new name, which is complete before the checkpoint is renamed
into place, and is removed with it. The checkpoint holds a checksum of every file.
"""

from __future__ import annotations

import secrets
import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from metaweight.problems import CheckpointError
from metaweight.problems.base.shards import is_sharded
from torch import Tensor

from ..distributed.processes import Processes
from .file import sync_folder
from .shards_folder import checksum_of, require_names

LABEL = "metaweight shards"


def without_shards(state: Any, place: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Return a state with its sharded tensors replaced by names, and the tensors by name."""
    found: dict[str, Tensor] = {}

    def name(value: Any, at: str) -> Any:
        if not is_sharded(value):
            return value
        found[at] = value.detach()
        return {LABEL: at}

    return _mapped(state, name, place), found


def write_shards(processes: Processes, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write sharded tensors to a new folder and return its description; all processes call this.

    Raises:
        CheckpointError: In all processes, when one cannot write or they do not share the folder;
            no files are left.
    """
    token = processes.from_first(lambda: secrets.token_hex(8))
    folder = path.with_name(f"{path.name}.shards-{token}")
    try:
        processes.from_first(folder.mkdir)
        _save(folder, tensors)
        own = f"shard-{processes.rank + 1:05d}-*.safetensors"
        names = [each for own in processes.gather(_names(folder, own)) for each in own]
        sums = processes.from_first(lambda: {each: checksum_of(folder / each) for each in names})
        processes.from_first(partial(sync_folder, folder))
        processes.from_first(partial(sync_folder, folder.parent))
    except (OSError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(
            f"The shards of a checkpoint could not be written to {folder}: {_reason(error)}. "
            "Previous checkpoints are unchanged; free disk space, or give a folder that all "
            "processes can read and write."
        ) from error
    described = {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}
    return {"folder": folder.name, "files": sums, "tensors": described}


def with_shards(processes: Processes, path: Path, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state with names replaced by their tensors: sharded if the strategy shards, else
    whole. All processes call this.

    Raises:
        CheckpointError: When the folder does not fit the checkpoint.
    """
    described = state.get("shards")
    if described is None:
        return state
    try:
        require_names(path, described)
        tensors = {
            name: processes.empty(shape, dtype)
            for name, (shape, dtype) in described["tensors"].items()
        }
        _load(path.with_name(described["folder"]), tensors)
        filled = {key: value for key, value in state.items() if key != "shards"}
        found: Mapping[str, Any] = _mapped(filled, lambda value, at: _named(value, tensors), "")
    # The description is untrusted, and torch's reader raises errors of many types.
    except Exception as error:
        raise CheckpointError(
            f"{path} describes shards that do not fit its folder ({_reason(error)}); move a "
            "checkpoint together with the folder beside it, or use another one."
        ) from error
    return found


def _named(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Mapping) and LABEL in value:
        return tensors[value[LABEL]]
    return value


def _mapped(value: Any, change: Any, at: str) -> Any:
    """Return plain data with values replaced by ``change(value, path)`` where that differs."""
    new = change(value, at)
    if new is not value:
        return new
    if type(value) in (list, tuple):
        return type(value)(_mapped(v, change, f"{at}.{i}") for i, v in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    kind: Any = type(value)
    found = kind({k: _mapped(v, change, f"{at}.{k}" if at else str(k)) for k, v in value.items()})
    if hasattr(value, "_metadata"):
        found._metadata = value._metadata
    return found


def _save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    # Slow to import.
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415

    writer = _storage().HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    # CheckpointException is no subclass of Exception.
    except CheckpointException as error:
        raise RuntimeError(_reason(error)) from error


def _load(folder: Path, tensors: dict[str, Tensor]) -> None:
    # Slow to import.
    import torch.distributed as dist  # noqa: PLC0415
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    with warnings.catch_warnings():
        # A single process reads without a process group.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(
                dict(tensors),
                storage_reader=_storage().HuggingFaceStorageReader(str(folder)),
                no_dist=not dist.is_initialized(),
            )
        except CheckpointException as error:
            raise RuntimeError(_reason(error)) from error


def _storage() -> Any:
    try:
        # Slow to import.
        import safetensors  # noqa: F401, PLC0415
        from torch.distributed.checkpoint import hf_storage  # noqa: PLC0415
    except ImportError as error:
        raise RuntimeError(
            f"{error}: torch.distributed.checkpoint writes them in its safetensors format, which "
            "needs pip install 'metaweight[fsdp]' and a version of torch that supports it"
        ) from error
    return hf_storage


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(file.name for file in folder.glob(pattern))


def _reason(error: BaseException) -> str:
    """Return the reason of an error, or of the first one gathered from all processes."""
    heard = getattr(error, "failures", {})
    first = next((failure for failure, _ in heard.values()), error)
    return str(getattr(first, "strerror", None) or first or type(first).__name__).rstrip(".")
