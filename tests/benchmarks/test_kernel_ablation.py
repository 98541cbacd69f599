"""The ablation of kernels: every variant is measured, and all compute the same hypergradient."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from torch import Tensor
from torch.nn import functional as F

KERNELS = ["batch_norm", "convolution", "linear"]
VARIANTS = {
    "resnet32": ["nothing", "batch_norm", "convolution", "all of them"],
    "transformer": ["nothing", "linear", "all of them"],
}


@pytest.mark.slow
def test_every_variant_is_measured_and_all_agree(run_script: Any, tmp_path: Path) -> None:
    run = run_script("kernel_ablation.py", "--quick", "--threads", "1", "--out", "here")
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "here" / "kernel_ablation.json").read_text())
    memory = {title: table for title, table in found.items() if title.endswith(", memory")}
    times = {title: table for title, table in found.items() if title not in memory}
    products = ("exact", "forward_over_reverse", "neumann")
    titles = [f"resnet32, {product}" for product in products]
    assert [*times] == [*titles, "transformer, exact"]
    for title, table in times.items():
        assert [row["contender"] for row in table["rows"]] == VARIANTS[title.split(",")[0]]
        assert table["rows"][0]["times all"] == 1
        # Rounding in single precision: a few 1e-7 for one step or two.
        assert all(row["s"] > 0 and row["difference"] < 1e-4 for row in table["rows"])
    (table,) = memory.values()
    assert [row["contender"] for row in table["rows"]] == VARIANTS["resnet32"]
    assert all(row["own MiB"] > 0 for row in table["rows"])
    assert "| batch_norm | 1 |" in run.stdout


@pytest.mark.parametrize("left_out", [[], *([name] for name in KERNELS), KERNELS])
def test_what_is_left_out_is_computed_by_torch(
    benchmark_modules: None, left_out: list[str]
) -> None:
    variants = importlib.import_module("kernel_variants")
    images, filters = torch.randn(2, 3, 4, 4), torch.randn(3, 3, 1, 1, requires_grad=True)
    rows, weight = torch.randn(64, 128), torch.randn(128, 128, requires_grad=True)

    def computed() -> dict[str, Tensor]:
        return {
            "batch_norm": F.batch_norm(images, None, None, filters[:, 0, 0, 0], training=True),
            "convolution": torch.conv2d(images, filters),
            "linear": F.linear(rows, weight),
        }

    assert [*variants.variants(*KERNELS).values()][-1] == tuple(KERNELS)
    with variants.without(left_out), differentiable_twice():
        found = computed()
    nodes = {name: type(output.grad_fn) for name, output in found.items()}
    of_torch = {name: type(output.grad_fn) for name, output in computed().items()}
    same = {name for name, node in nodes.items() if node is of_torch[name]}
    assert same == set(left_out)
