"""Validation of the parts of a problem: module, optimizer, scheduler, loaders, state."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset, IterableDataset

from ..base.errors import CheckpointError, ConfigurationError, DataError
from ..base.settings import shown
from .loader_parts import length_of

WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


def checked_name(name: object) -> str:
    """Return a problem's name.

    Raises:
        ConfigurationError: When it cannot be an attribute.
    """
    if not isinstance(name, str) or not _is_public_identifier(name):
        raise ConfigurationError(
            f"Problem(name={name!r}): other problems reach it as an attribute, so the name "
            "must be an identifier such as 'classifier', without a leading underscore."
        )
    return name


def checked_device(owner: str, device: torch.device | str) -> torch.device:
    """Return a device that is available.

    Args:
        owner: Name of the caller, for messages.
        device: The device, or its name.

    Raises:
        ConfigurationError: When torch does not know it, or it is not available.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(
            f"{owner} received device={device!r}, which is not a device torch knows; use one such "
            "as 'cpu', 'cuda' or 'cuda:1'."
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"{owner} received device={device!r}, but torch sees {torch.cuda.device_count()} GPUs "
            "here; use one of these, or 'cpu'."
        )
    return found


def require_module(problem: str, module: object) -> None:
    """Refuse an object that is not a module, or a module not ready to be trained.

    Raises:
        ConfigurationError: Naming the problem, and the parameter if it is one.
    """
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"Problem {problem!r} received module={shown(module)}; give a torch.nn.Module"
            f"{_made(module, nn.Module, 'Net()')}."
        )
    for place, part in module.named_modules():
        if any(base.__name__ in WRAPPERS for base in type(part).__mro__):
            raise ConfigurationError(
                f"{place or 'module'!r} of problem {problem!r} is a {type(part).__name__}, which "
                "averages or gathers in backward() only, so that hypergradients would differ "
                "between processes; give the module inside it, and EngineConfig(strategy="
                "'distributed') or 'fsdp'."
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ConfigurationError(
                f"{name!r} in the module of problem {problem!r} has no shape yet; call the module "
                "once on a batch, and then make its optimizer."
            )
        if tensor.is_inference():
            raise ConfigurationError(
                f"{name!r} in the module of problem {problem!r} was made inside "
                "torch.inference_mode(), so that it can never be trained; build the module outside."
            )


def require_movable(problem: str, module: nn.Module, device: torch.device) -> None:
    """Refuse a module that would lose its parameters on the way to ``device``, or has none.

    Raises:
        ConfigurationError: Naming the problem and the parameter.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta and device.type != "meta":
            raise ConfigurationError(
                f"{name!r} in the module of problem {problem!r} is on the device 'meta', which "
                f"holds no numbers; call module.to_empty(device={str(device)!r}) and initialise it."
            )
        if device.type == "meta" and not tensor.is_meta:
            raise ConfigurationError(
                f"Problem {problem!r} is on the device 'meta', which holds no numbers, and "
                f"{name!r} of its module is not; use a device such as 'cpu' or 'cuda'."
            )


def require_optimizer(problem: str, optimizer: object) -> None:
    """Refuse an object that is not an optimizer.

    Raises:
        ConfigurationError: Naming the problem.
    """
    needed = ("step", "state_dict", "load_state_dict")
    known = hasattr(optimizer, "param_groups") and _has_methods(optimizer, needed)
    if not known or isinstance(optimizer, type):
        raise ConfigurationError(
            f"Problem {problem!r} received optimizer={shown(optimizer)}; give a torch optimizer"
            f"{_made(optimizer, torch.optim.Optimizer, 'SGD(module.parameters(), lr=0.1)')}."
        )


def require_scheduler(problem: str, scheduler: object, optimizer: Any) -> None:
    """Refuse an object that is not a scheduler, or a scheduler of another optimizer.

    Raises:
        ConfigurationError: Naming the problem.
    """
    if isinstance(scheduler, type) or not _has_methods(scheduler, ("step",)):
        kind = torch.optim.lr_scheduler.LRScheduler
        raise ConfigurationError(
            f"Problem {problem!r} received scheduler={shown(scheduler)}; give a torch scheduler of "
            f"its optimizer{_made(scheduler, kind, 'StepLR(optimizer, 10)')}."
        )
    scheduled = getattr(scheduler, "optimizer", None)
    if scheduled is None or optimizer is None or scheduled is optimizer:
        return
    # A wrapped optimizer has the parameter groups of the one inside.
    if getattr(scheduled, "param_groups", None) is not optimizer.param_groups:
        raise ConfigurationError(
            f"The {type(scheduler).__name__} of problem {problem!r} was made for another optimizer "
            "than the problem's, whose learning rate it would leave alone; build it over the "
            "optimizer that the problem is given, or in configure_scheduler."
        )


def require_loaders(problem: str, given: object) -> None:
    """Refuse an object that is neither a loader nor a tuple of loaders; nothing is read.

    Raises:
        DataError: Naming the problem.
    """
    if isinstance(given, tuple) and not given:
        raise DataError(
            f"Problem {problem!r} received train_data_loader=(), a tuple of no loaders; give one "
            "or several."
        )
    for index, loader in enumerate(given if isinstance(given, tuple) else (given,)):
        require_loader(problem, index, loader)


def require_loader(problem: str, index: int, loader: object) -> None:
    """Refuse an object from which no batches can be read.

    Raises:
        DataError: Naming the problem.
    """
    place = f"Loader {index} of problem {problem!r}"
    iterable = isinstance(loader, Iterable) or hasattr(type(loader), "__getitem__")
    if not iterable or isinstance(loader, (str, bytes, Mapping)):
        raise DataError(
            f"{place} is {shown(loader)}; give an iterable of batches, such as a DataLoader, or a "
            "tuple of several."
        )
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise DataError(
            f"{place} is a data set of type {type(loader).__name__}, which gives samples rather "
            "than batches; give DataLoader(dataset, batch_size=...), with batch_size=None if its "
            "items are batches."
        )


def require_batches(problem: str, index: int, loader: object) -> None:
    """Refuse a loader that is known to have no batch.

    Raises:
        DataError: Naming the problem.
    """
    if length_of(loader) == 0 or is_exhausted(loader):
        raise DataError(
            f"Loader {index} of problem {problem!r}, of type {type(loader).__name__}, has no "
            "batches: it is empty, has been read to its end, or holds less than one batch with "
            "drop_last=True; give it data."
        )


def require_loadable(problem: str, module: nn.Module, optimizer: Any, state: object) -> None:
    """Refuse a state of another problem before any of it is loaded.

    Raises:
        CheckpointError: Naming the problem and what does not fit.
    """
    own = module.state_dict()
    needed = ["module"] if optimizer is None else ["module", "optimizer"]
    if not isinstance(state, Mapping) or not all(isinstance(state.get(k), Mapping) for k in needed):
        keys = sorted(map(str, state)) if isinstance(state, Mapping) else shown(state)
        raise CheckpointError(
            f"load_state_dict of problem {problem!r} received {keys}; give what state_dict of such "
            f"a problem returned, with {' and '.join(map(repr, needed))}."
        )
    given = state["module"]
    odd = sorted(set(own).symmetric_difference(given))
    odd += [k for k in own if k in given and _shape(own[k]) != _shape(given[k])]
    if odd:
        raise CheckpointError(
            f"load_state_dict of problem {problem!r} received the state of another module: "
            f"{odd[0]!r} is {_shape(given.get(odd[0]))} there and {_shape(own.get(odd[0]))} here; "
            "give the state of the same module."
        )


def _shape(value: object) -> str:
    if value is None:
        return "absent"
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "no tensor"


def is_exhausted(loader: object) -> bool:
    """Return whether a loader is a generator that has been read to its end."""
    return hasattr(loader, "gi_frame") and loader.gi_frame is None


def _is_public_identifier(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name)


def _has_methods(value: object, names: Iterable[str]) -> bool:
    return all(callable(getattr(value, name, None)) for name in names)


def _made(value: object, kind: type, example: str) -> str:
    """Return advice on making an object, also when its class was given in its place."""
    given = isinstance(value, type) and issubclass(value, kind)
    return f" rather than its class, such as {example}" if given else f", such as {example}"
