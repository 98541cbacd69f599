"""A trained estimator as tensors and settings, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaweight.problems import CheckpointError

from .inputs import Inputs
from .saved import part, read
from .training import weight_network

_ARRAYS = ("_given", "_predicted", "sample_weights_", "sample_losses_", "clean_indices_")
_SCALE = ("mean", "deviation")


def state_of(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a trained estimator, and its settings and sizes for JSON.

    Settings that are functions are left out, but their names.
    """
    tensors = {f"module.{name}": each for name, each in model.module_.state_dict().items()}
    tensors |= {f"weights.{name}": v for name, v in model.weight_module_.state_dict().items()}
    arrays = {name: getattr(model, name) for name in _ARRAYS}
    arrays |= {name: getattr(model._inputs, name) for name in _SCALE}
    tensors |= {k: torch.from_numpy(each) for k, each in arrays.items() if each is not None}
    tensors |= {f"history.{k}": torch.from_numpy(each) for k, each in model.history_.items()}
    settings = {k: v for k, v in model.get_params(deep=False).items() if k != "module"}
    whole = isinstance(model.random_state, Integral)
    settings["random_state"] = int(model.random_state) if whole else None
    functions = sorted(name for name, value in settings.items() if callable(value))
    fitted = {
        "targets": model._targets.saved(),
        "features": getattr(model, "n_features_in_", None),
        "feature names": getattr(model, "feature_names_in_", np.array([])).tolist(),
        "width": model._width,
        "whole inputs": model._inputs.whole,
        "names": model._names,
        "table": model._table,
        "own module": model.module is not None,
        "functions": functions,
        "best epoch": model.best_epoch_,
    }
    kept = {name: value for name, value in settings.items() if name not in functions}
    return tensors, {"settings": kept, "fitted": fitted}


def restored(cls: Any, folder: Path, module: Any, functions: Mapping[str, Any]) -> Any:
    """Return the trained estimator that was saved in a folder.

    Raises:
        CheckpointError: When there is none, or module and functions do not fit.
    """
    tensors, found = read(folder)
    fitted = found["fitted"]
    if fitted["own module"] != (module is not None):
        needed = "a module of its own; give it as" if module is None else "no module; leave out"
        raise CheckpointError(f"The model in {folder} was trained with {needed} module=….")
    missing = sorted(set(fitted["functions"]) - set(functions))
    if missing:
        raise CheckpointError(
            f"The model in {folder} was trained with a function {missing[0]}=…, which is not "
            "saved; give it to load()."
        )
    model = cls(module, **{**found["settings"], **functions})
    model._set_targets(cls._restored(fitted["targets"]))
    if fitted["features"] is not None:
        model.n_features_in_ = fitted["features"]
    if fitted["feature names"]:
        model.feature_names_in_ = np.array(fitted["feature names"], dtype=object)
    for name in _ARRAYS:
        setattr(model, name, tensors[name].numpy() if name in tensors else None)
    model.history_ = {k: each.numpy() for k, each in part(tensors, "history").items()}
    model.best_epoch_ = fitted["best epoch"]
    model._width, model._table = fitted["width"], fitted["table"]
    model._names = None if fitted["names"] is None else tuple(fitted["names"])
    _restore_networks(model, folder, tensors, whole=fitted.get("whole inputs", False))
    return model


def _restore_networks(
    model: Any, folder: Path, tensors: Mapping[str, Tensor], *, whole: bool
) -> None:
    net, weigher = part(tensors, "module"), part(tensors, "weights")
    outputs = model._targets.outputs
    # The values that are drawn are replaced.
    with torch.random.fork_rng():
        model.module_ = model._made(model._width, outputs)
        model.weight_module_ = weight_network(model.class_aware, model.weight_output, outputs)
    scale = [tensors[name].numpy() for name in _SCALE if name in tensors]
    usual = Inputs.of_module(model.module_)
    model._inputs = (
        Inputs(torch.float64, scale[0], scale[1]) if scale else replace(usual, whole=whole)
    )
    model.weight_module_.to(next(v.dtype for v in weigher.values() if v.is_floating_point()))
    try:
        model.module_.load_state_dict(net)
        model.weight_module_.load_state_dict(weigher)
    except RuntimeError as error:
        raise CheckpointError(f"The model in {folder} is of another module: {error}") from error
    model.module_.eval()
    model.weight_module_.eval()
