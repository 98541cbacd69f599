"""State as plain data, which ``torch.load(weights_only=True)`` reads without running any code.

Tensors, numbers, text and lists, tuples and dictionaries of these are plain. Sets, queues, arrays,
named tuples and dataclasses become plain data with a label of their type. For a class only its name
is written; an object is rebuilt only from a class that the program itself has already imported, and
without calling any of its methods.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import CheckpointError
from ..base.indexed import Indexed, rebuilt
from ..base.shards import is_sharded

LABEL = "metaweight holds"
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
MAPPINGS: tuple[type, ...] = (dict, OrderedDict, Counter)
SEQUENCES: dict[str, Callable[[Any], Any]] = {"set": set, "frozenset": frozenset, "deque": list}


def to_plain(value: Any, where: str, *, copy: bool = False) -> Any:
    """Return ``value`` as plain data, tensors on the host and without graphs; sharded ones remain.

    Args:
        value: Any state.
        where: Name of the value, for messages.
        copy: Whether the result must share no memory with ``value``.

    Raises:
        CheckpointError: For anything that is not plain data, such as an object of a class.
    """
    return _Writer(copy).write(value, where)


def from_plain(value: Any, device: torch.device | None = None) -> Any:
    """Return the value from which :func:`to_plain` made the plain data.

    Args:
        value: Plain data.
        device: Device for tensors that were not on the host, if their own device is not available;
            when left out, all tensors are put on the host.

    Raises:
        CheckpointError: For a label that is not one of ours, or a class the program lacks.
    """
    return _Reader(device).read(value)


class _Writer:
    def __init__(self, copy: bool) -> None:
        self._copy = copy

    def write(self, value: Any, where: str) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind in (list, tuple):
            return kind([self.write(v, f"{where}[{i}]") for i, v in enumerate(value)])
        write: Callable[[Any, str], Any] = self._labelled
        if isinstance(value, Tensor):
            write = self._tensor
        elif isinstance(value, np.ndarray):
            write = self._array
        elif isinstance(value, Mapping):
            write = self._mapping
        return write(value, where)

    def _tensor(self, value: Tensor, where: str) -> Any:
        tensor = value.detach()
        if is_sharded(tensor):
            return tensor.clone() if self._copy else tensor
        if type(tensor) is not Tensor:
            raise CheckpointError(_cannot(where, type(value), "give plain tensors"))
        if tensor.layout != torch.strided:
            return tensor.clone() if self._copy else tensor
        if tensor.device.type != "cpu":
            place = str(tensor.device)
            return {LABEL: "tensor", "device": place, "value": tensor.cpu()}
        needed = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        larger = tensor.untyped_storage().nbytes() > max(needed, 1) * tensor.element_size()
        expanded = 0 in tensor.stride()
        if expanded or not (self._copy or larger):
            return tensor
        # The same strides, so that results computed from it are equal to the bit.
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)

    def _array(self, value: Any, where: str) -> Any:
        try:
            tensor = torch.from_numpy(np.array(value))
        except TypeError as error:
            raise CheckpointError(_cannot(where, value.dtype, "give numbers")) from error
        return {LABEL: "array", "value": tensor}

    def _mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        kind: Any = dict if type(value).__name__ == "defaultdict" else type(value)
        if kind not in MAPPINGS:
            raise CheckpointError(_cannot(where, type(value), "make it a dict"))
        for key in value:
            if not _plain_key(key) or key == LABEL:
                raise CheckpointError(_cannot(f"a key of {where}", type(key), "use text"))
        found = kind({k: self.write(v, f"{where}[{k!r}]") for k, v in value.items()})
        metadata = getattr(value, "_metadata", None)
        if metadata is not None and kind is OrderedDict:
            found._metadata = self.write(metadata, f"the metadata of {where}")
        return found

    def _labelled(self, value: Any, where: str) -> Any:
        name = type(value).__name__
        if type(value) in (set, frozenset, deque):
            items = [self.write(v, f"an item of {where}") for v in value]
            length = value.maxlen if isinstance(value, deque) else None
            return {LABEL: name, "items": items, "length": length}
        if isinstance(value, Indexed):
            items = [self.write(v, f"{where}[{i}]") for i, v in enumerate(value)]
            fields = getattr(value, "_fields", None)
            return {LABEL: "indexed", "name": name, "fields": fields, "items": items}
        names = field_names(type(value))
        place = f"{type(value).__module__}:{type(value).__qualname__}"
        if names is None or class_at(place) is not type(value) or _has_more(value, names):
            raise CheckpointError(
                _cannot(
                    where,
                    type(value),
                    "make it tensors, numbers, text, or tuples, lists and dictionaries of these, "
                    "or a named tuple or dataclass defined at the top of a module",
                )
            )
        content = {name: self.write(getattr(value, name), f"{where}.{name}") for name in names}
        return {LABEL: "class", "place": place, "fields": content}


class _Reader:
    def __init__(self, device: torch.device | None) -> None:
        self._device = device

    def read(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)([self.read(v) for v in value])
        if not isinstance(value, Mapping):
            return value
        if LABEL in value:
            return self._labelled(value)
        kind: Any = type(value)
        found = kind({k: self.read(v) for k, v in value.items()})
        if hasattr(value, "_metadata"):
            found._metadata = value._metadata
        return found

    def _labelled(self, value: Mapping[str, Any]) -> Any:
        label = value[LABEL]
        if label == "tensor":
            return self._placed(value["value"], value["device"])
        if label == "array":
            return value["value"].numpy()
        if label == "deque":
            return deque([self.read(v) for v in value["items"]], value["length"])
        if label == "indexed":
            return rebuilt(value["name"], value["fields"], [self.read(v) for v in value["items"]])
        if label in SEQUENCES:
            return SEQUENCES[label](self.read(v) for v in value["items"])
        if label == "class":
            return self._filled(value["place"], value["fields"])
        raise CheckpointError(f"The checkpoint holds data with the unknown label {label!r}.")

    def _placed(self, tensor: Tensor, place: str) -> Tensor:
        if self._device is None or self._device.type == "cpu":
            return tensor
        device = torch.device(place)
        there = device.type == self._device.type
        if there and (device.index or 0) < torch.get_device_module(device).device_count():
            return tensor.to(device)
        return tensor.to(self._device)

    def _filled(self, place: str, fields: Mapping[str, Any]) -> Any:
        found = class_at(place)
        names = None if found is None else field_names(found)
        if found is None or names != list(fields):
            raise CheckpointError(
                f"The checkpoint holds a batch of class {place.replace(':', '.')} with fields "
                f"{', '.join(map(str, fields))}, which this program has not imported; import the "
                "module it was saved with."
            )
        values = [self.read(v) for v in fields.values()]
        if issubclass(found, tuple):
            return tuple.__new__(found, values)
        filled = object.__new__(found)
        for name, content in zip(fields, values, strict=True):
            object.__setattr__(filled, name, content)
        return filled


def field_names(kind: type) -> list[str] | None:
    """Return the fields of a named tuple or dataclass, or ``None`` for another class."""
    if issubclass(kind, tuple) and isinstance(vars(kind).get("_fields"), tuple):
        return list(vars(kind)["_fields"])
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return None


def class_at(place: str) -> type | None:
    """Return a class of a module that is imported already, or ``None``; nothing is imported."""
    module, _, path = place.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        try:
            found = vars(found).get(part)
        except TypeError:
            return None
    return found if isinstance(found, type) else None


def _plain_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(map(_plain_key, key))
    return type(key) in (str, int, float, bool, type(None))


def _has_more(value: Any, names: list[str]) -> bool:
    return not set(getattr(value, "__dict__", ())) <= set(names)


def _cannot(where: str, kind: Any, remedy: str) -> str:
    name = getattr(kind, "__qualname__", kind)
    return f"{where} cannot be saved, because it is of type {name}; {remedy}."
