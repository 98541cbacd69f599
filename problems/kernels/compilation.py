"""``torch.compile`` of a problem's module, and passes that must run uncompiled."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..base.errors import ConfigurationError
from .torch_internals import eager_stance, is_compiled, set_stance

Compile = bool | Mapping[str, Any]
"""Whether to compile, or how: arguments of ``torch.compile``."""


def checked_compile(value: object) -> Compile:
    """Return the setting in the form a ``Config`` stores.

    Raises:
        ConfigurationError: When it is neither a truth value nor a mapping from names.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ConfigurationError(
        f"Config(compile={value!r}) must be True, False, or a dictionary of arguments of "
        "torch.compile, such as {'mode': 'reduce-overhead'}."
    )


def compile_module(module: nn.Module, setting: Compile) -> None:
    """Compile calls of ``module`` in place; its parameters, their names and its type are kept."""
    if setting is not False and not is_compiled(module):
        module.compile(**({} if setting is True else dict(setting)))


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled modules and functions run uncompiled.

    A compiled pass cannot be differentiated twice, and does not show its operations to an
    :class:`~metaweight.problems.kernels.activation_pattern.ActivationPattern`.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    if eager_stance() is None or torch.compiler.is_compiling():
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager
    return _Eager()


class _Eager:
    """What ``torch.compiler.set_stance`` does, which takes longer than a dozen operations of
    torch: it imports what it calls, each of three times."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = set_stance(eager_stance())

    def __exit__(self, *exception: object) -> None:
        set_stance(self._before)
