"""Label noise with a known ground truth."""

from __future__ import annotations

from .label_noise import LabelNoise, NoiseKind, inject_label_noise

__all__ = ["LabelNoise", "NoiseKind", "inject_label_noise"]
