"""Errors of the library; each message says what was asked, what was received and what to do."""

from __future__ import annotations


class MetaweightError(Exception):
    """Base class of every error metaweight raises on purpose."""


class ConfigurationError(MetaweightError, ValueError):
    """A setting is unknown, contradicts another one, or does not fit the problem it is given to."""


class GraphError(MetaweightError, ValueError):
    """The problems and dependencies given to an engine do not form a valid program."""


class DataError(MetaweightError, ValueError):
    """A loader or a batch cannot be used as it was given."""


class LossError(MetaweightError, ValueError):
    """A ``training_step`` returned something that is not a usable loss."""


class HypergradientError(MetaweightError, ArithmeticError):
    """A hypergradient could not be formed: a solve diverged, or something was not recorded."""


class NonFiniteError(MetaweightError, ArithmeticError):
    """A loss, gradient or hypergradient is not finite.

    Attributes:
        problem: Name of the problem.
        step: Its step.
    """

    problem: str = ""
    step: int = 0


class CheckpointError(MetaweightError, RuntimeError):
    """A checkpoint could not be written, read, or does not belong to this program."""


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint was changed or cut after it was written."""
