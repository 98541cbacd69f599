"""Apply ``fully_shard`` to a problem: choose modules, check optimizers, refuse what cannot work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.base.settings import LeftOutText
from metaweight.problems.base.shards import as_sharded_as, is_sharded
from metaweight.problems.step.lower_view import lower_view
from metaweight.problems.unrolling import optimizer_copy, owns_settings, owns_start, why_not_copied
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

FIRST_ORDER = (
    "ReweightedProblem with Reweighting() or Reweighting(derivative='one_sided'), type='darts', "
    "type='sama' with SGD, Adam or AdamW, Penalty() and ZeroOrder()"
)


def modules_of(problem: Problem) -> list[nn.Module]:
    """Return the modules to shard, the whole network last; empty if it is to stay whole."""
    chosen = problem.shard_modules()
    root: nn.Module = problem.module
    # Hypergradients for this problem would need autograd.grad, which FSDP does not support.
    if problem.paths or not any(True for _ in root.parameters()):
        return []
    if chosen is None:
        return [*dict.fromkeys(_blocks(root)), root]
    given = list(chosen)
    strangers = [m for m in given if all(m is not own for own in root.modules())]
    if strangers:
        raise ConfigurationError(
            f"shard_modules() of problem {problem.name!r} returned {type(strangers[0]).__name__}, "
            "which is no part of its module; return modules of self.module.modules()."
        )
    return [*dict.fromkeys(m for m in given if m is not root), root] if given else []


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the entries of lists and sequentials that have parameters and share none."""
    uses = Counter(id(p) for owner in module.modules() for p in owner._parameters.values())
    yield from _entries(module, uses)


def _entries(module: nn.Module, uses: Mapping[int, int]) -> Iterator[nn.Module]:
    lists = (nn.ModuleList, nn.ModuleDict)
    for child in module.children():
        if isinstance(module, (nn.Sequential, *lists)) and not isinstance(child, lists):
            own = Counter(id(p) for m in child.modules() for p in m._parameters.values())
            if any(p is not None for p in child.parameters()) and all(
                uses[key] == number for key, number in own.items() if key != id(None)
            ):
                yield child
        else:
            yield from _entries(child, uses)


def require_shardable(
    problem: Problem, problems: Sequence[Problem], modules: Sequence[nn.Module], mesh: DeviceMesh
) -> None:
    """Refuse a problem that cannot be sharded as it is.

    Raises:
        ConfigurationError: Naming the reason and what to do.
    """
    name, parameters = problem.name, list(problem.module.named_parameters())
    sharded = any(is_sharded(p) for _, p in parameters)
    if not modules:
        if sharded:
            raise _refused(
                name,
                "is sharded already but now has hypergradients of its own or an empty "
                "shard_modules(), so it must be whole; make a new module and optimizer",
            )
        return
    _require_first_order(problem, problems)
    config = problem.config
    for setting, given in (
        ("precision", config.precision != "fp32"),
        ("compile", bool(config.compile)),
        ("hypergradient_parameters", config.hypergradient_parameters is not None),
    ):
        if given:
            value = getattr(config, setting)
            owner = "EngineConfig" if isinstance(value, LeftOutText) else "Config"
            raise _refused(
                name,
                f"has {owner}({setting}={value!r}), which does not go with sharded parameters; "
                "leave it out",
            )
    if owns_start(problem) or owns_settings(problem):
        raise _refused(
            name,
            "has a start or optimizer settings that an upper problem learns, which are whole "
            "tensors; drop initial_parameters and learned_settings",
        )
    _require_own_parameters(problem)
    if not sharded:
        for key, parameter in parameters:
            if parameter.ndim == 0 or not parameter.is_contiguous():
                what = "a single number" if parameter.ndim == 0 else "not contiguous in memory"
                raise _refused(
                    name,
                    f"has the parameter {key!r}, which is {what}; give it a dimension of length 1 "
                    "or make it contiguous (without channels_last)",
                )
        _require_optimizer(problem, mesh)


def _require_first_order(problem: Problem, problems: Sequence[Problem]) -> None:
    below = any(problem in path[1:-1] for other in problems for path in other.paths)
    method = problem.hypergradient
    if below and not method.takes_first_derivatives(lower_view(problem)):
        raise _refused(
            problem.name,
            f"asks for {type(method).__name__}, which differentiates twice or forward, and the "
            f"hooks of FSDP let neither pass. These work: {FIRST_ORDER}. Choose one of them",
        )


def _require_own_parameters(problem: Problem) -> None:
    groups = [] if problem.optimizer is None else problem.optimizer.param_groups
    own = {id(p) for p in problem.module.parameters()}
    if any(id(p) not in own for group in groups for p in group["params"]):
        raise _refused(
            problem.name,
            f"has the optimizer {type(problem.optimizer).__name__} with parameters that are not "
            "its module's; give it those that self.module.parameters() has now",
        )


def _require_optimizer(problem: Problem, mesh: DeviceMesh) -> None:
    optimizer = problem.optimizer
    if optimizer is None:
        return
    kind = type(optimizer).__name__
    # Some optimizers, such as Adagrad, have state before their first step.
    if any(float(entries.get("step", 1)) for entries in optimizer.state.values()):
        raise _refused(
            problem.name,
            f"has the optimizer {kind}, which has taken steps already: its state is of whole "
            "parameters; give a new one, and load earlier state by engine.load",
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        reason = "it keeps one state for all parameters"
    else:
        reason = _why_not_sharded(optimizer, mesh)
    if reason:
        raise _refused(
            problem.name,
            f"has the optimizer {kind}, which cannot update shards ({reason}); use another, such "
            "as AdamW",
        )


def _why_not_sharded(optimizer: torch.optim.Optimizer, mesh: DeviceMesh) -> str:
    """Return the error of a trial step on a small sharded parameter, or an empty text."""
    reason = why_not_copied(optimizer)
    if reason is not None:
        return reason
    owners = {p.dim(): (group, p) for group in optimizer.param_groups for p in group["params"]}
    for dim, (group, owner) in owners.items():
        small = torch.ones((mesh.size(), *[2] * (dim - 1)), device=mesh.device_type)
        parameter = nn.Parameter(distribute_tensor(small, mesh, [Shard(0)]))
        parameter.grad = distribute_tensor(small, mesh, [Shard(0)])
        twin = optimizer_copy(optimizer)
        twin.param_groups = [{**group, "params": [parameter]}]
        twin.state = type(optimizer.state)(dict)
        if owner in optimizer.state:
            twin.state[parameter] = {
                key: torch.zeros_like(parameter) if _is_like(value, owner) else _copied(value)
                for key, value in optimizer.state[owner].items()
            }
        try:
            type(optimizer).step(twin)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def shard_problem(problem: Problem, modules: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Shard a problem's network and the parameters and state of its optimizer.

    Raises:
        ConfigurationError: When torch refuses the module.
    """
    before = dict(problem.module.named_parameters(remove_duplicate=False))
    try:
        for module in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    except (NotImplementedError, ValueError, AssertionError, RuntimeError) as error:
        raise _refused(
            problem.name,
            f"has a module that torch does not shard ({error}); choose its parts in "
            "shard_modules(), or return [] there to keep it whole",
        ) from error
    after = dict(problem.module.named_parameters(remove_duplicate=False))
    shards = {before[name]: parameter for name, parameter in after.items()}
    if problem.optimizer is not None:
        _replace_parameters(problem.optimizer, shards)


def _replace_parameters(optimizer: torch.optim.Optimizer, shards: Mapping[Tensor, Tensor]) -> None:
    """Replace an optimizer's parameters by shards, with their state."""
    for group in optimizer.param_groups:
        group["params"][:] = [shards[p] for p in group["params"]]
    for parameter, shard in shards.items():
        entries = optimizer.state.pop(parameter, None)
        if entries is not None:
            optimizer.state[shard] = {
                key: as_sharded_as(value, shard) if _is_like(value, shard) else value
                for key, value in entries.items()
            }


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _refused(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"EngineConfig(strategy='fsdp') cannot shard problem {name!r}: it {why}, or use "
        "strategy='zero'."
    )
