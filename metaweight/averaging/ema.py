"""Exponential moving average of a model's parameters.

``θ'_t = d_t θ'_{t-1} + (1 - d_t) θ_t`` with ``d_t = β`` or a warm-up of it (see
:mod:`~metaweight.averaging.decay`). Sources: for averaged iterates Polyak and Juditsky (1992); for
the average as a teacher of its model Tarvainen and Valpola, "Mean teachers are better role models"
(NeurIPS 2017, arXiv:1703.01780).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from metaweight.engines.distributed.processes import running_statistics
from metaweight.problems import ConfigurationError
from metaweight.problems.base.ordinary_tensors import without_graph
from metaweight.problems.base.shards import is_sharded

from .copied_module import copied_module
from .decay import Buffers, EMASettings, WarmUp
from .named_tensors import (
    NamedTensors,
    average,
    buffers_of,
    copies,
    difference,
    follow,
    non_finite,
    overwrite,
    parameters_of,
    wide_copies,
)


class EMA:
    """Averages a model's parameters while it trains; the average, or teacher, can replace it. ::

        ema = EMA(model, beta=0.999)
        for batch in loader:
            step(model, batch)
            ema.update()                # after the optimizer's step
        with ema.applied():             # or apply_teacher() and restore_student()
            validate(model)

    All floating-point parameters are averaged, in single precision or better whatever the model's:
    in half precision an average with ``beta`` near 1 would never change. The teacher's values are
    copied into the model's parameters and the student's are copied back, bit for bit; parameters
    keep their storage. A call that raises an error leaves model and average unchanged.

    Args:
        model: The model to average; it may change its device or precision later.
        beta: ``β`` in [0, 1); averages over about 1 / (1 - β) updates.
        warm_up: ``"none"``, ``"mean_teacher"``, ``"ict"`` or ``"bias_corrected"``.
        buffers: Source of the teacher's buffers, such as batch-norm statistics: ``"copy"``, the
            model's as of the last update; ``"ema"``, averages like the parameters, where integer
            ones are copied; ``"own"``, updated by the teacher's own passes, while it is applied or
            through :meth:`teacher`; ``"none"``, the model's own, left unchanged.

    Attributes:
        model: The model.
        settings: ``beta``, ``warm_up`` and ``buffers``.
        step: Updates so far.

    Raises:
        ConfigurationError: For a setting that is unknown or out of range, or a model without
            floating-point parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        beta: float = 0.999,
        *,
        warm_up: WarmUp = "none",
        buffers: Buffers = "copy",
    ) -> None:
        self.settings = EMASettings(beta, warm_up, buffers)
        if not isinstance(model, nn.Module) or not parameters_of(model):
            raise ConfigurationError(
                f"EMA was given {type(model).__name__}, which has nothing to average; give a "
                "torch.nn.Module with floating-point parameters."
            )
        self.model = model
        self.step = 0
        self._teacher: nn.Module | None = None
        self._student: tuple[NamedTensors, NamedTensors] | None = None
        self.reset()

    @property
    def is_applied(self) -> bool:
        """Whether the model holds the teacher's values now."""
        return self._student is not None

    @without_graph
    def reset(self) -> None:
        """Restart the average from the model's current parameters.

        A :meth:`teacher` returned before is still kept up to date if the model has the same
        parameters and buffers; otherwise call :meth:`teacher` again.

        Raises:
            ConfigurationError: While the teacher is applied.
        """
        self.require_student("reset")
        parameters, buffers = parameters_of(self.model), buffers_of(self.model)
        self.step = 0
        self._parameters = wide_copies(parameters)
        held = wide_copies if self.settings.buffers == "ema" else copies
        self._buffers = {} if self.settings.buffers == "none" else held(buffers)
        if self._teacher is not None:
            theirs = parameters_of(self._teacher) | buffers_of(self._teacher)
            if difference(theirs, parameters | buffers):
                self._teacher = None
            else:
                overwrite(theirs, parameters | buffers)

    @without_graph
    def update(self) -> None:
        """Update the average with the model's current parameters; never waits for the device.

        Raises:
            ConfigurationError: While the teacher is applied, or when parameters or buffers of the
                model have other names or shapes than before.
        """
        self.require_student("update")
        parameters, buffers = self._matched()
        decay = self.settings.decay(self.step + 1)
        follow(self._parameters, parameters)
        average(self._parameters, parameters, decay)
        if self.settings.buffers in ("copy", "ema"):
            follow(self._buffers, buffers)
        if self.settings.buffers == "ema":
            average(self._buffers, buffers, decay)
        elif self.settings.buffers == "copy":
            overwrite(self._buffers, buffers)
        self.step += 1
        self._refresh_teacher(buffers)

    @without_graph
    def apply_teacher(self) -> None:
        """Copy the teacher's values into the model, until :meth:`restore_student`.

        Raises:
            ConfigurationError: When it is applied already, when parameters or buffers of the model
                have other names or shapes than before, or when the average is not finite.
        """
        self.require_student("apply_teacher")
        parameters, buffers = self._matched()
        self._require_finite()
        buffers = {} if self.settings.buffers == "none" else buffers
        student = (copies(parameters), copies(buffers))
        try:
            overwrite(parameters, self._parameters)
            overwrite(buffers, self._teacher_buffers())
        except BaseException:
            overwrite(parameters, student[0])
            overwrite(buffers, student[1])
            raise
        self._student = student

    @without_graph
    def restore_student(self) -> None:
        """Copy back the model's values from before the teacher was applied, bit for bit.

        Raises:
            ConfigurationError: When the teacher is not applied, or when parameters or buffers of
                the model have other names or shapes by now; the student's values are then kept.
        """
        if self._student is None:
            raise ConfigurationError(
                "restore_student() was called, but the teacher is not applied; call "
                "apply_teacher() first, or use applied()."
            )
        parameters, buffers = parameters_of(self.model), buffers_of(self.model)
        buffers = {} if self.settings.buffers == "none" else buffers
        changed = difference(self._student[0] | self._student[1], parameters | buffers)
        if changed:
            raise ConfigurationError(
                f"The model was changed while the teacher was applied ({changed}); undo that and "
                "call restore_student() again, the student's values are still kept."
            )
        if self.settings.buffers == "own":
            overwrite(self._teacher_buffers(), buffers)
        overwrite(parameters, self._student[0])
        overwrite(buffers, self._student[1])
        self._student = None

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Apply the teacher inside the ``with`` statement, and restore the student in any case."""
        self.apply_teacher()
        try:
            yield self.model
        finally:
            if self.is_applied:
                self.restore_student()

    @without_graph
    def teacher(self) -> nn.Module:
        """Return a copy of the model that holds the average and needs no gradient.

        Every call returns the same module, for use in a training loss; each update writes to it.
        Its mode (``train()`` or ``eval()``) is the caller's choice. With ``buffers="none"`` its
        buffers are the model's as of the last update.

        Raises:
            ConfigurationError: For a model that cannot be copied, naming the layer.
        """
        if self._teacher is None:
            _, buffers = self._matched()
            if any(map(is_sharded, self.model.parameters())):
                raise ConfigurationError(
                    "EMA.teacher() was asked for a copy of a model whose parameters are sharded "
                    "(EngineConfig(strategy='fsdp')), which torch does not copy; use "
                    "'with ema.applied():', which puts the average into the model itself."
                )
            teacher = copied_module(self.model)
            # While the teacher is applied, its own buffers are in the model and were copied.
            if not (self.is_applied and self.settings.buffers == "own"):
                overwrite(buffers_of(teacher), self._buffers or buffers)
            overwrite(parameters_of(teacher), self._parameters)
            self._teacher = teacher
        return self._teacher

    def own_statistics(self) -> list[torch.Tensor]:
        """Return running means and variances computed by the passes of :meth:`teacher` itself.

        The list is empty without ``buffers="own"`` and before the first call of :meth:`teacher`.
        """
        if self._teacher is None or self.settings.buffers != "own":
            return []
        return list(running_statistics(self._teacher))

    @without_graph
    def state_dict(self) -> dict[str, Any]:
        """Return the step and copies of the average.

        Raises:
            ConfigurationError: While the teacher is applied: a checkpoint would lose the student.
        """
        self.require_student("state_dict")
        parameters, buffers = copies(self._parameters), copies(self._teacher_buffers())
        return {"step": self.step, "parameters": parameters, "buffers": buffers}

    @without_graph
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, for the same model and ``buffers``.

        Raises:
            ConfigurationError: While the teacher is applied, or when names or shapes differ.
        """
        self.require_student("load_state_dict")
        _, buffers = self._matched()
        kept = self._teacher_buffers()
        wrong = f"it holds {', '.join(state) or 'nothing'}"
        if {"step", "parameters", "buffers"} <= state.keys():
            wrong = difference(self._parameters | kept, state["parameters"] | state["buffers"])
        if wrong:
            raise ConfigurationError(
                f"The state given to EMA.load_state_dict is of another average ({wrong}); load it "
                "over the same model and with the same buffers setting as it was saved."
            )
        overwrite(self._parameters, state["parameters"])
        overwrite(kept, state["buffers"])
        self.step = int(state["step"])
        self._refresh_teacher(buffers)

    def require_student(self, asked: str) -> None:
        """Refuse the call named ``asked`` while the teacher is applied.

        Raises:
            ConfigurationError: When the teacher is applied.
        """
        if self.is_applied:
            raise ConfigurationError(
                f"{asked}() was called while the teacher is applied, so the model holds the "
                "teacher's values; call restore_student() first."
            )

    def _teacher_buffers(self) -> NamedTensors:
        """Return the teacher's buffers while it is not applied; none where they are the model's."""
        if self._teacher is not None and self.settings.buffers == "own":
            return buffers_of(self._teacher)
        return self._buffers

    def _refresh_teacher(self, buffers: NamedTensors) -> None:
        if self._teacher is None:
            return
        overwrite(parameters_of(self._teacher), self._parameters)
        if self.settings.buffers != "own":
            overwrite(buffers_of(self._teacher), self._buffers or buffers)

    def _matched(self) -> tuple[NamedTensors, NamedTensors]:
        """Return parameters and buffers of the model, and refuse others than those averaged."""
        parameters, buffers = parameters_of(self.model), buffers_of(self.model)
        kept = self._teacher_buffers()
        if self.settings.buffers == "none":
            kept = buffers if self._teacher is None else buffers_of(self._teacher)
        changed = difference(self._parameters | kept, parameters | buffers)
        if changed:
            raise ConfigurationError(
                f"The model no longer has the parameters and buffers EMA averages ({changed}); put "
                "it back as it was, or call reset() to restart the average from it."
            )
        return parameters, buffers

    def _require_finite(self) -> None:
        checked = dict(self._parameters)
        if self.settings.buffers == "ema":
            checked |= self._buffers
        wrong = non_finite(checked)
        if wrong:
            raise ConfigurationError(
                f"The average is not finite in {', '.join(wrong)}, so applying it would break the "
                "model: it has diverged before an update, or holds infinities on purpose. Load "
                "an earlier state, call reset(), or use buffers='copy' for such buffers."
            )
