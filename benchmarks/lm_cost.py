"""Cost of learned data weights of a language model, against plain fine-tuning of the same one.

::

    python benchmarks/lm_cost.py              # a small Llama; most of the time is imports
    python benchmarks/lm_cost.py --width 512 --layers 8 --words 8000        # 40 million parameters
    python benchmarks/lm_cost.py --length 1024 --method central "central, math kernel"
    python benchmarks/lm_cost.py --device cuda --precision bf16 --method central "every 4"

===============  ==================================================================================
``plain``        AdamW on the mean loss of the tokens, written by hand
``central``      weights of sources, two forward passes at displaced parameters
``one-sided``    one such pass, and the losses of the training step
``every 4``      as ``central``, a step of the weights with every fourth of the model
``rater``        weights of sequences by hidden states of the training pass, as ``central``
``forward``      weights of sources, one pass of dual numbers
===============  ==================================================================================

On request also ``plain, math kernel`` and ``central, math kernel``: the same programs without fused
attention, which methods of second derivatives must do without and first-order passes keep.

Once with all parameters trained, and once with LoRA adapters by PEFT; each against plain
fine-tuning of its own kind. Parameters are random and texts too: they do not change the cost. A
clean batch has a quarter of the sequences, or ``--clean``: it costs as much as a training batch of
its size. "copies" is the peak of memory over that of plain fine-tuning, in copies of what is
trained. Each contender has a process of its own, and in each round all of them step in turn while
the others sleep. Needs ``pip install 'metaweight[trl]'``. Times and peak memory are printed, and
written as JSON and Markdown with versions, processor and settings.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from devices import DEVICES
from speed_report import table
from study.files import write_text
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from turns import MIB, Outcome, Step, environment, markdown, measure

from metaweight import Config, Engine, Hook, Reweighting
from metaweight.lm import CleanLM, Rater, Sources, WeightedLM

EVERY = 4
"""Steps of the model in a step of a contender, so that all of them can be due once."""
PLAIN = "plain"
METHODS: dict[str, tuple[Reweighting, int]] = {
    "central": (Reweighting(derivative="central_difference"), 1),
    "one-sided": (Reweighting(derivative="one_sided"), 1),
    f"every {EVERY}": (Reweighting(derivative="central_difference"), EVERY),
    "rater": (Reweighting(derivative="central_difference"), 1),
    "forward": (Reweighting(derivative="forward_mode"), 1),
}
MATH = ", math kernel"
WITHOUT_FUSED = (f"{PLAIN}{MATH}", f"central{MATH}")
TRAINED = ("all parameters", "LoRA")
SOURCES = 6


@dataclass(frozen=True)
class Shape:
    """What is trained, and on how much."""

    width: int = 64
    layers: int = 2
    words: int = 256
    length: int = 64
    batch: int = 8
    clean: int = 2
    precision: str = "fp32"
    device: str = "cpu"


def model(shape: Shape, trained: str) -> nn.Module:
    """Return a Llama with random parameters, or one with adapters on all of its linear layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.words,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.width // 32),
        max_position_embeddings=shape.length,
        attn_implementation="sdpa",
    )
    with torch.device(shape.device):
        net: nn.Module = LlamaForCausalLM(config)
    if trained == "LoRA":
        from peft import LoraConfig, get_peft_model

        net = get_peft_model(net, LoraConfig(r=8, target_modules="all-linear"))
    return net.to(shape.device)


class Batches:
    """Texts at random, of one seed for each batch.

    Args:
        shape: Their length and vocabulary.
        seed: Of all batches.
        number: Texts of a batch.
    """

    def __init__(self, shape: Shape, seed: int, number: int) -> None:
        self.shape, self.seed, self.number = shape, seed, number

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in count():
            draw = torch.Generator().manual_seed(1000 * self.seed + number)
            size = (self.number, self.shape.length)
            batch = {
                "input_ids": torch.randint(self.shape.words, size, generator=draw),
                "source": torch.randint(SOURCES, size[:1], generator=draw),
            }
            yield {name: value.to(self.shape.device) for name, value in batch.items()}


def adamw(net: nn.Module) -> torch.optim.AdamW:
    """Return the optimizer of what is trained."""
    return torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)


def plain(shape: Shape, trained: str, steps: int) -> Step:
    """Return plain fine-tuning, by hand."""
    net, batches = model(shape, trained).train(), iter(Batches(shape, 1, shape.batch))
    optimizer = adamw(net)
    half = shape.precision == "bf16"

    def step() -> float:
        for _ in range(steps):
            ids = next(batches)["input_ids"]
            with torch.autocast(shape.device, torch.bfloat16, enabled=half):
                logits = net(ids, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    return step


class Last(Hook):
    """Keeps the loss of the model's last step."""

    loss: Any = None

    def after_step(self, engine: Any, problem: Any, result: Any) -> None:
        if problem.name == "lm":
            self.loss = result.loss.detach()


def weighted(name: str, shape: Shape, trained: str, steps: int) -> Step:
    """Return the steps of a program that learns weights."""
    method, every = METHODS[name]
    net = model(shape, trained)
    rated = name == "rater"
    weights = (Rater(shape.width) if rated else Sources(SOURCES)).to(shape.device)
    lm = WeightedLM(
        "lm",
        Config(type=method, unroll_steps=every),
        weights="weights",
        level="sequence" if rated else "source",
        module=net,
        optimizer=adamw(net),
        train_data_loader=Batches(shape, 1, shape.batch),
    )
    top = CleanLM(
        "weights",
        model="lm",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), 1e-3),
        train_data_loader=Batches(shape, 2, shape.clean),
    )
    last = Last()
    settings: dict[str, Any] = {"train_iters": 1, "valid_step": 10**9, "progress": False}
    settings["precision"] = shape.precision
    engine = Engine.bilevel(top, lm, hooks=[last], device=shape.device, **settings)

    def step() -> float:
        for _ in range(steps):
            engine.train_step()
        return float(last.loss)

    return step


def without_fused(make: Callable[[], Step]) -> Step:
    """Return the step of a program whose attention is torch's math kernel."""
    inner = make()

    def step() -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return inner()

    return step


def maker(name: str, shape: Shape, trained: str, steps: int) -> Callable[[], Step]:
    """Return the maker of a contender's steps, of ``steps`` of the model each."""
    if name.endswith(MATH):
        return partial(without_fused, maker(name.removesuffix(MATH), shape, trained, steps))
    if name == PLAIN:
        return partial(plain, shape, trained, steps)
    return partial(weighted, name, shape, trained, steps)


def contenders(
    shape: Shape, trained: str, steps: int = EVERY, names: Sequence[str] = tuple(METHODS)
) -> dict[str, Callable[[], Step]]:
    """Return the makers of the steps of plain fine-tuning and of the contenders with these names,
    of ``steps`` of the model each."""
    return {name: maker(name, shape, trained, steps) for name in (PLAIN, *names)}


def versions() -> dict[str, str]:
    """Return the versions of the packages that the model is from."""
    return {name: metadata.version(name) for name in ("transformers", "peft")}


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in asdict(Shape()).items():
        if isinstance(value, int):
            parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument(
        "--method",
        nargs="+",
        choices=(*METHODS, *WITHOUT_FUSED),
        default=tuple(METHODS),
        help="default: all with fused attention",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each contender; default: 1")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; default: 5")
    parser.add_argument("--out", type=Path, default=Path("results/lm_cost"))
    return parser.parse_args(given)


def copies(outcomes: Mapping[str, Outcome], shape: Shape, trained: str) -> dict[str, float]:
    """Return each contender's peak over that of plain fine-tuning, in copies of what is trained."""
    with warnings.catch_warnings():
        # PEFT uses what transformers is about to rename.
        warnings.simplefilter("ignore", FutureWarning)
        parameters = model(shape, trained).parameters()
    size = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    peaks = {name: found.turns[-1].peak for name, found in outcomes.items() if found.error is None}
    return {name: (peak - peaks[PLAIN]) * MIB / size for name, peak in peaks.items()}


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    arguments = parse(given)
    shape = Shape(**{name: getattr(arguments, name) for name in asdict(Shape())})
    around = {**environment(arguments.threads, shape.device), **versions()}
    report: dict[str, Any] = {}
    for trained in TRAINED:
        outcomes = measure(
            contenders(shape, trained, names=arguments.method),
            arguments.threads,
            arguments.rounds,
            1,
            returns_memory=True,
            device=shape.device,
        )
        more = copies(outcomes, shape, trained)
        rows = [
            {**row, "copies": more.get(row["contender"])} for row in table(outcomes, PLAIN, EVERY)
        ]
        report[trained] = {"environment": around, "shape": asdict(shape), "rows": rows}
        texts = [
            markdown(found["rows"], f"{name}, a step of the model")
            for name, found in report.items()
        ]
        print(f"{texts[-1]}\n", flush=True)
        write_text(arguments.out / "lm_cost.json", json.dumps(report, indent=2))
        write_text(arguments.out / "lm_cost.md", "\n\n".join(texts) + "\n")
    return int(any(row.get("failed") for found in report.values() for row in found["rows"]))


if __name__ == "__main__":
    raise SystemExit(main())
