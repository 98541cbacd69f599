"""The tables of pages about unrolling, more processes, waiting for data, and kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .measured import Cell, Measured

SCALING, INPUT, KERNELS = "scaling/scaling", "input/speed_input", "kernels/kernel_ablation"
LM_COST, LM_LONG = "lm_cost/lm_cost", "lm_cost/long/lm_cost"
CAPTURED = "captured/speed_captured"
RESNET32, TRANSFORMER = (f"unrolled/{name}/hypergradients" for name in ("resnet32", "transformer"))
UNROLLED_NAMES: Mapping[str, str] = {
    "training": "training alone",
    "unroll": "metaweight: exact",
    "unroll-declared": "metaweight: exact, declared",
    "unroll-full": "metaweight: exact, full memory",
    "unroll-forward": "metaweight: forward_over_reverse",
    "unroll-difference": "metaweight: finite_difference, declared",
    "unroll-one-sided": "metaweight: one_sided, declared",
    "unroll-higher": "higher: unroll",
    "unroll-torchopt": "torchopt: MetaSGD",
    "together": "two together",
    "apart": "two apart",
    "alone": "one process",
    "python-steps": "Python",
    "compiled-steps": "compiled",
    "compiled-together": "compiled, 8 iterations",
    "central": "central",
    "central-by-parts": "central, math kernel",
    "plain-by-parts": "plain, math kernel",
    "torchopt-steps": "torchopt",
    "jax-loop": "jax",
    "jax-calls": "jax, calls",
    "boat-steps": "boat-torch",
    "tensors": "tensors, TensorLoader with RandomCropFlip",
    "pil-images": "PIL, torch's DataLoader, 0 workers",
    "pil-images-2": "PIL, torch's DataLoader, 2 workers",
}
_UNROLLED = {
    "training alone": "training",
    "`Unroll()`": "unroll",
    "`Unroll()`, declared weights": "unroll-declared",
    '`Unroll(memory="full")`': "unroll-full",
    '`Unroll(product="forward_over_reverse")`': "unroll-forward",
    '`Unroll(product="finite_difference")`, declared weights': "unroll-difference",
    '`Unroll(product="one_sided")`, declared weights': "unroll-one-sided",
    "higher": "unroll-higher",
    "TorchOpt": "unroll-torchopt",
}
_COSTS = {"error": ("error", ".0e"), "seconds": ("s", ".2f"), "live MiB": ("live MiB", ".0f")}
MACHINES = (2, 4, 8, 16, 64)
LM_TOKENS = 8 * 64
"""Tokens of a training batch of ``lm_cost.py``, as it is asked for."""
_LM = {
    "plain fine-tuning": "plain",
    "central differences, every step": "central",
    "one-sided, every step": "one-sided",
    "central, every 4 steps": "every 4",
    "a rater of sequences, central, every step": "rater",
    "forward mode, every step": "forward",
}
_LONG = {
    "plain fine-tuning": "plain",
    "the same, math kernel": "plain, math kernel",
    "central differences, every step": "central",
    "the same, math kernel, every step": "central, math kernel",
    "forward mode, every step": "forward",
}
_FEEDS = {
    "PIL, torch's `DataLoader`, no workers": "PIL, torch's DataLoader, 0 workers",
    "PIL, torch's `DataLoader`, 2 workers": "PIL, torch's DataLoader, 2 workers",
    "PIL, `SampleLoader`, no workers": "PIL, SampleLoader, 0 workers",
    "PIL, `SampleLoader`, 1 worker": "PIL, SampleLoader, 1 worker",
    "PIL, `SampleLoader`, 2 workers": "PIL, SampleLoader, 2 workers",
    "tensors, `TensorLoader` with `RandomCropFlip`": "tensors, TensorLoader with RandomCropFlip",
}
_LEFT_OUT = {
    "kernels": (
        "resnet32, exact",
        {
            "batch norm": "batch_norm",
            "convolution": "convolution",
            "all of them": "all of them",
        },
    ),
    "transformer_kernels": (
        "transformer, exact",
        {"linear layer": "linear", "all of them": "all of them"},
    ),
}
_STEPS = (1, 4, 8)


def _unrolled(report: str, title: str, steps: Sequence[int]) -> Measured:
    """Return errors, seconds and memory of a network's contenders, for numbers of steps."""
    columns = [f"{shown}, k = {k}" for shown in _COSTS for k in steps]
    rows: dict[str, Sequence[Cell | None]] = {}
    for label, short in _UNROLLED.items():
        rows[label] = [
            None
            if short == "training" and key == "error"
            else Cell(title, UNROLLED_NAMES[short], key, form, k)
            for key, form in _COSTS.values()
            for k in steps
        ]
    return Measured(report, ["", *columns], rows)


_BY = {
    "hand-written": "hand-written",
    "Betty": "betty-ml",
    "TorchOpt": "torchopt",
    "JAX": "jax",
    "JAX, calls": "jax, calls",
    "BOAT": "boat-torch",
    "by Python": "Python",
    '`"replay"`': "replayed",
    '`"compile"`': "compiled",
    "8 iterations": "compiled, 8 iterations",
}
_OURS = ("Python", "replayed", "compiled")
_TOGETHER = "compiled, 8 iterations"
_CAPTURED: Mapping[str, tuple[str, ...]] = {
    "toy, finite differences": ("hand-written", "betty-ml", *_OURS, _TOGETHER),
    "toy, SOBA": (*_OURS, _TOGETHER),
    "toy, ten steps unrolled": _OURS,
    "quadratic, SOBA": ("jax", "jax, calls", *_OURS, _TOGETHER),
    "hyper-cleaning, ten steps unrolled": ("boat-torch", *_OURS),
    "three levels": ("hand-written", "betty-ml", *_OURS),
    "MLP": ("betty-ml", *_OURS),
    "MLP, exact": ("torchopt", *_OURS),
    "MLP, exact, flat memory": ("torchopt", *_OURS),
    "MLP, ten steps": ("betty-ml", *_OURS),
    "MLP, ten steps, exact": ("torchopt", *_OURS),
    "MLP, ten steps, exact, flat memory": ("torchopt", *_OURS),
}

COST_TABLES: Mapping[str, Measured] = {
    "captured": Measured(
        CAPTURED,
        ["ms an iteration", *_BY],
        {
            title: [
                Cell(title, short, "ms", ".3f") if short in names else None
                for short in _BY.values()
            ]
            for title, names in _CAPTURED.items()
        },
    ),
    "unrolled-resnet32": _unrolled(RESNET32, "resnet32", _STEPS),
    "unrolled-transformer": _unrolled(TRANSFORMER, "transformer", (1, 8, 32)),
    "lm-cost": Measured(
        LM_COST,
        [
            "",
            *("all parameters, ms a token", "times plain", "copies of them"),
            *("LoRA, times plain", "peak of memory, times plain"),
        ],
        {
            title: [
                Cell("all parameters", name, "median ms", ".2f", scale=1 / LM_TOKENS),
                Cell("all parameters", name, "times plain"),
                Cell("all parameters", name, "copies", ".1f"),
                Cell("LoRA", name, "times plain"),
                Cell("LoRA", name, "peak times plain"),
            ]
            for title, name in _LM.items()
        },
    ),
    "lm-attention": Measured(
        LM_LONG,
        [
            "",
            *("all parameters, times plain", "peak of memory, times plain"),
            *("LoRA, times plain", "peak of memory, times plain"),
        ],
        {
            title: [
                Cell(trained, name, key)
                for trained in ("all parameters", "LoRA")
                for key in ("times plain", "peak times plain")
            ]
            for title, name in _LONG.items()
        },
    ),
    "scaling": Measured(
        SCALING,
        [
            "a step, ms",
            *("one process", "two together, gloo", "two apart"),
            *("efficiency together, %", "MB reduced a step", "reductions"),
        ],
        {
            title: [
                *(
                    Cell(name, UNROLLED_NAMES[short], "ms a step", ".3g")
                    for short in ("alone", "together", "apart")
                ),
                Cell(name, UNROLLED_NAMES["together"], "efficiency", ".0f", scale=100),
                Cell(name, UNROLLED_NAMES["together"], "bytes", ".2g", scale=1e-6),
                Cell(name, UNROLLED_NAMES["together"], "reductions", ".0f"),
            ]
            for title, name in {"ResNet-32": "resnet32", "MLP": "mlp"}.items()
        },
    ),
    "machines": Measured(
        SCALING,
        ["efficiency, %", *(f"P = {machines}" for machines in MACHINES)],
        {
            f"{title}, {network}": [
                Cell(f"{name}, more machines", network, "efficiency", ".1f", machines, 100)
                for machines in MACHINES
            ]
            for title, name in {"ResNet-32": "resnet32", "MLP": "mlp"}.items()
            for network in ("10 Gbit/s Ethernet", "100 Gbit/s InfiniBand")
        },
    ),
    "input": Measured(
        INPUT,
        ["", "share waiting, small network, %", "ResNet-32, %", "ms a batch, alone"],
        {
            label: [
                Cell("small", name, "share waiting", ".0f", scale=100),
                Cell("resnet32", name, "share waiting", ".1f", scale=100),
                Cell("small", name, "ms a batch alone", ".2g"),
            ]
            for label, name in _FEEDS.items()
        },
    ),
    **{
        table: Measured(
            KERNELS,
            ["left out", *(f"{t}, k = {k}" for k in _STEPS for t in ("time", "processor time"))],
            {
                label: [
                    Cell(title, name, key, at=k)
                    for k in _STEPS
                    for key in ("times all", "CPU times all")
                ]
                for label, name in names.items()
            },
        )
        for table, (title, names) in _LEFT_OUT.items()
    },
}
