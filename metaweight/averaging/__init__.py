"""Averages of a model's parameters over training: exponential moving averages, mean teachers."""

from __future__ import annotations

from .ema import EMA
from .ema_hook import EMAHook

__all__ = ["EMA", "EMAHook"]
