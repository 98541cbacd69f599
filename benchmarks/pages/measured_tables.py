"""The tables of README and documentation that come from measured times and memory, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .measured import Cell, Measured
from .measured_costs import COST_TABLES, UNROLLED_NAMES

SPEED, GROWTH = "speed/speed", "speed/growth"
RESNET32 = "resnet32 100"
NAMES: Mapping[str, str] = {
    "plain": "plain step",
    "plain-last": "plain step, channels last",
    "hand": "hand-written",
    "ours": "metaweight",
    "native": "metaweight, native",
    "one-sided": "metaweight, native, one-sided",
    "native-compiled": "metaweight, native, compiled",
    "program": "metaweight, Betty's program",
    "exact": "metaweight, exact",
    "full": "metaweight, exact, full memory",
    "betty": "betty-ml, finite difference",
    "betty-ml": "betty-ml",
    "higher": "higher, unrolled",
    "higher-kept": "higher, unrolled, step kept",
    "torchopt": "torchopt, unrolled",
    "torchopt-kept": "torchopt, unrolled, step kept",
    "by-hand": "native, by hand",
    **UNROLLED_NAMES,
}
_STEPS = {
    "declared weights": NAMES["native"],
    "the same, one-sided differences": NAMES["one-sided"],
    "the same, forward mode (exact)": "metaweight, native, forward mode",
    "one-sided, last block and classifier alone": "metaweight, native, one-sided, last block",
    "declared weights, channels last": "metaweight, native, channels last",
    "one-sided, channels last": "metaweight, native, one-sided, channels last",
    "forward mode (exact), channels last": "metaweight, native, forward mode, channels last",
    "last block and classifier, channels last": (
        "metaweight, native, one-sided, last block, channels last"
    ),
    "channels last, bf16, hypergradient in fp32": (
        "metaweight, native, bf16, hypergradient in fp32, channels last"
    ),
    "one-sided, channels last, bf16": "metaweight, native, one-sided, bf16, channels last",
    "the program as written for Betty": NAMES["program"],
    "Betty, the same program": NAMES["betty"],
    "higher, one unrolled step": NAMES["higher"],
    "TorchOpt, one unrolled step": NAMES["torchopt"],
}
_SHORT = {
    "metaweight": NAMES["native"],
    "metaweight, one-sided differences": NAMES["one-sided"],
    "metaweight, one-sided, channels last, bf16": _STEPS["one-sided, channels last, bf16"],
    "Betty": NAMES["betty"],
    "higher, one unrolled step": NAMES["higher"],
}
_WORKLOADS = {
    "ResNet-32 (`resnet32_exact`)": "resnet32, exact 100",
    "MLP hyper-cleaning (`mlp`)": "mlp",
    "transformer (`transformer`)": "transformer",
    "ten steps for one, MLP, a lower step (`unroll10`)": "unroll10, a lower step",
}
_CONTENDERS = {
    "native, by hand": NAMES["by-hand"],
    "native, central": NAMES["native"],
    "one-sided": NAMES["one-sided"],
    "exact": NAMES["exact"],
    "exact, all graphs kept": NAMES["full"],
    "exact, step taken again": "metaweight, exact, step taken again",
    "the program as for Betty": NAMES["program"],
    "Betty": NAMES["betty"],
    "official, by hand": "official algorithm, plain",
    "higher": NAMES["higher"],
    "higher, step kept": NAMES["higher-kept"],
    "TorchOpt": NAMES["torchopt"],
    "TorchOpt, step kept": NAMES["torchopt-kept"],
}
_ABSENT = {
    "resnet32, exact 100": (
        "native, by hand",
        "native, central",
        "one-sided",
        "the program as for Betty",
        "Betty",
    ),
    "unroll10, a lower step": (
        "exact, step taken again",
        "official, by hand",
        "higher",
        "TorchOpt",
    ),
}
_GROWING = {
    "native": NAMES["native"],
    "unrolled, one-sided": "metaweight, unrolled, one-sided",
    "exact": NAMES["exact"],
    "Betty": NAMES["betty"],
}
_UNROLLING = {**_GROWING, "higher, step kept": NAMES["higher-kept"]}
_LEVELS = {
    "metaweight": "metaweight",
    "unrolled, one-sided": "metaweight, unrolled, one-sided",
    "exact": "metaweight, exact",
    "Betty": "betty-ml",
}

_PARAMETERS = {
    "native": NAMES["native"],
    "one-sided": NAMES["one-sided"],
    "Betty": NAMES["betty"],
}
_LOWERS = {"by hand": "hand-written", "metaweight": "metaweight", "Betty": "betty-ml"}


def _of_steps(rows: Mapping[str, str], cosines: bool) -> dict[str, list[Cell | None]]:
    """Return the cells of the ResNet-32's contenders; only ours have a cosine."""
    found: dict[str, list[Cell | None]] = {}
    for title, name in rows.items():
        time = Cell(RESNET32, name, "times plain step")
        memory = Cell(RESNET32, name, "peak times plain step")
        betty = Cell(RESNET32, name, "Betty takes times")
        cosine = Cell("hypergradients", name, "cosine", ".4f")
        ours = name.startswith("metaweight")
        found[title] = (
            [time, betty, cosine if ours else None, memory] if cosines else [time, memory]
        )
    return found


def _of_workloads() -> dict[str, list[Cell | None]]:
    """Return the cells of the bilevel workloads: a plain step, then all contenders' ratios."""
    found: dict[str, list[Cell | None]] = {}
    for title, name in _WORKLOADS.items():
        # Declared weights look one step ahead; differences through ten are those of `Unroll`.
        own = {"one-sided": _GROWING["unrolled, one-sided"]} if name.startswith("unroll10") else {}
        found[title] = [Cell(name, NAMES["plain"], "median ms", ".3g")]
        found[title] += [
            None if short in _ABSENT.get(name, ()) else Cell(name, full, "times plain step")
            for short, full in {**_CONTENDERS, **own}.items()
        ]
    return found


def _growth(
    kind: str,
    label: str,
    sizes: Sequence[int],
    names: Mapping[str, str],
    key: str = "times plain step",
) -> Measured:
    """Return the table of a quantity that grows."""
    rows = {
        title: [Cell(kind, name, key, ".3g", size) for size in sizes]
        for title, name in names.items()
    }
    return Measured(GROWTH, [label, *(f"{size:,}" for size in sizes)], rows)


TABLES: Mapping[str, Measured] = {
    "resnet32": Measured(
        SPEED,
        [
            *("", "times a plain training step", "Betty takes times as long"),
            *("cosine of the hypergradient", "peak memory over a plain step's"),
        ],
        _of_steps(_STEPS, cosines=True),
    ),
    "resnet32-readme": Measured(
        SPEED,
        ["", "times a plain training step", "peak memory over a plain step's"],
        _of_steps(_SHORT, cosines=False),
    ),
    "workloads": Measured(SPEED, ["", "plain step, ms", *_CONTENDERS], _of_workloads()),
    "programs": Measured(
        SPEED,
        ["", "hand-written, ms", "metaweight, times it", "Betty, times it"],
        {
            title: [
                Cell(name, NAMES["hand"], "median ms", ".3g"),
                Cell(name, "metaweight", "times hand-written"),
                Cell(name, "betty-ml", "times hand-written"),
            ]
            for title, name in {
                "three levels (`three_level`)": "three_level",
                "toy, a hypergradient every step (`toy`)": "toy 1",
                "toy, every 100 steps": "toy 100",
            }.items()
        },
    ),
    "growth-batch": _growth("batch", "batch", (25, 50, 100, 200, 400), _GROWING),
    "growth-unroll": _growth(
        "unroll", "steps for one of the upper level, a lower step", (1, 2, 4, 8, 16), _UNROLLING
    ),
    "growth-upper": _growth(
        "upper", "upper parameters", (100, 1000, 10_000, 100_000, 1_000_000), _GROWING
    ),
    "growth-parameters": _growth(
        "parameters", "lower parameters", (10**5, 10**6, 10**7, 10**8), _PARAMETERS
    ),
    "growth-memory": _growth(
        "parameters",
        "memory of the process, lower parameters",
        (10**5, 10**6, 10**7, 10**8),
        _PARAMETERS,
        "peak times plain step",
    ),
    "growth-lowers": _growth("lowers", "lower problems", (1, 2, 4, 8, 16), _LOWERS),
    "growth-levels": _growth("levels", "levels", (1, 2, 3, 4, 6), _LEVELS),
    **COST_TABLES,
}
