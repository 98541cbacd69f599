"""What an engine is built from and run with, refused where it cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import ConfigurationError, GraphError, Problem
from metaweight.problems.base.settings import require_count, shown

from .hooks.base import Hook
from .program.config import EngineConfig
from .program.env import Env

if TYPE_CHECKING:
    from .engine import Engine

Dependencies = Mapping[str, Mapping[Problem, Sequence[Problem]]]


def checked_config(config: object) -> EngineConfig:
    """Return the settings of an engine; the defaults where there are none.

    Raises:
        ConfigurationError: For anything but an :class:`EngineConfig`.
    """
    if config is None:
        return EngineConfig()
    if not isinstance(config, EngineConfig):
        raise ConfigurationError(
            f"Engine(config={shown(config)}) is no EngineConfig; give one, such as "
            "EngineConfig(train_iters=1000), or leave it out. Config(...) is for a problem."
        )
    return config


def config_or_settings(config: EngineConfig | None, settings: Mapping[str, Any]) -> EngineConfig:
    """Return the settings of an engine that are given as an object or by their names.

    Raises:
        ConfigurationError: For both.
    """
    if config is not None and settings:
        names = ", ".join(f"{name}=..." for name in settings)
        raise ConfigurationError(
            f"Engine.bilevel(config=..., {names}) gives settings twice; write all of them in one "
            "EngineConfig, or leave config out."
        )
    return checked_config(config) if config is not None else EngineConfig(**settings)


def two_levels(upper: object, lower: object) -> tuple[list[Problem], Dependencies]:
    """Return one problem over one or several as a list, with the edges between them.

    Raises:
        GraphError: For what is no problem, and without a lower one.
    """
    lowers = list(lower) if isinstance(lower, (list, tuple)) else [lower]
    found = []
    for role, problem in [("upper", upper), *(("lower", each) for each in lowers)]:
        if not isinstance(problem, Problem):
            raise GraphError(
                f"Engine.bilevel({role}={shown(problem)}) is no problem; give objects of classes "
                "derived from ImplicitProblem or IterativeProblem."
            )
        found.append(problem)
    if not lowers:
        raise GraphError("Engine.bilevel(lower=[]) has no lower problem; give one or several.")
    top, *below = found
    return found, {"u2l": {top: below}, "l2u": {each: [top] for each in below}}


def checked_problems(problems: Any) -> list[Problem]:
    """Return the problems as a list.

    Raises:
        GraphError: For anything that is no series of problems, and for one given twice.
    """
    if isinstance(problems, (str, Mapping)) or not isinstance(problems, Iterable):
        raise GraphError(
            f"Engine(problems={shown(problems)}) is no list of problems; give all of them, such "
            "as [outer, inner]."
        )
    found = list(problems)
    for index, problem in enumerate(found):
        if not isinstance(problem, Problem):
            raise GraphError(
                f"problems[{index}] is {shown(problem)}; give objects of classes derived from "
                "ImplicitProblem or IterativeProblem."
            )
        if any(problem is other for other in found[:index]):
            raise GraphError(f"problems has {problem.name!r} twice; list it once.")
    return found


def checked_hooks(hooks: Any) -> list[Hook]:
    """Return the hooks as a list.

    Raises:
        ConfigurationError: For anything that is no series of hooks, and for one given twice.
    """
    if not isinstance(hooks, Iterable):
        raise ConfigurationError(
            f"Engine(hooks={shown(hooks)}) is no list of hooks; give one, such as [NormLogger()]."
        )
    found = list(hooks)
    for index, hook in enumerate(found):
        if not isinstance(hook, Hook):
            called = isinstance(hook, type) and issubclass(hook, Hook)
            remedy = "an object rather than its class" if called else "an object derived from Hook"
            raise ConfigurationError(f"hooks[{index}] is {shown(hook)}; give {remedy}.")
        if any(hook is other for other in found[:index]):
            raise ConfigurationError(
                f"hooks has the same {type(hook).__name__} twice; list it once."
            )
    return found


def require_env(env: object) -> None:
    """Refuse what is no environment.

    Raises:
        ConfigurationError: Saying what to derive it from.
    """
    if env is not None and not isinstance(env, Env):
        raise ConfigurationError(
            f"Engine(env={shown(env)}) is no environment; give an object of a class derived from "
            "Env, or leave it out."
        )


def require_free_names(problems: Sequence[Problem], engine: Engine, env: Env | None) -> None:
    """Refuse a name that an engine, a problem or the environment already uses for something.

    Raises:
        GraphError: Naming the problem and the holder of the name.
    """
    for problem in problems:
        holders: list[object] = [engine, *(p for p in problems if p is not problem)]
        for holder in (*holders, env) if env is not None else holders:
            earlier = holder.position.peers if isinstance(holder, Problem) else {}
            taken = problem.name in vars(holder) and problem.name not in earlier
            if taken or hasattr(type(holder), problem.name):
                raise GraphError(
                    f"A problem is named {problem.name!r}, which would hide the attribute "
                    f"{problem.name!r} of {type(holder).__name__}; give the problem another name."
                )


def require_validation(engine: Engine) -> None:
    """Refuse settings that look at what ``validation`` returns, where there is none.

    Raises:
        ConfigurationError: Naming the setting.
    """
    config, name = engine.config, type(engine).__name__
    if config.keep_best and not engine.do_validation():
        raise ConfigurationError(
            f"EngineConfig(keep_best={config.keep_best}) ranks checkpoints by what validation "
            f"returns, but {name} has none; override validation()."
        )
    if config.early_stopping and not engine.do_validation():
        raise ConfigurationError(
            "EngineConfig(early_stopping=True) watches what validation returns, but "
            f"{name} has none; override validation(), or leave early_stopping out."
        )


def require_runnable(engine: Engine) -> None:
    """Refuse to run where nothing could be trained, before anything is loaded or read.

    Raises:
        ConfigurationError: Inside ``torch.no_grad`` or ``inference_mode``, and for counts that were
            set to something else.
    """
    if not torch.is_grad_enabled():
        around = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise ConfigurationError(
            f"Engine.run() was called inside torch.{around}(), where nothing can be "
            "differentiated; call it outside."
        )
    require_count("Engine", "train_iters", engine.train_iters, least=0)
    require_count("Engine", "valid_step", engine.valid_step, least=1)


@contextmanager
def unchanged_on_error(problems: Sequence[Problem], env: Env | None) -> Iterator[None]:
    """Inside, an exception leaves problems and environment with the attributes they had.

    So it does modes of modules and parameter groups of optimizers.
    """
    holders: list[Any] = [*problems, *([] if env is None else [env])]
    modes = [(m, m.training) for p in problems if p.module is not None for m in p.module.modules()]
    groups = [p.optimizer.param_groups for p in problems if p.optimizer is not None]
    kept = [list(given) for given in groups]
    before = [(holder, dict(vars(holder))) for holder in holders]
    try:
        yield
    except BaseException:
        for holder, attributes in before:
            vars(holder).clear()
            vars(holder).update(attributes)
        for module, training in modes:
            module.training = training
        for now, earlier in zip(groups, kept, strict=True):
            now[:] = earlier
        raise
