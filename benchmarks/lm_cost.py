"""Cost of learned data weights of a language model, against plain fine-tuning of the same one.

::

    python benchmarks/lm_cost.py              # a small Llama; most of the time is imports
    python benchmarks/lm_cost.py --width 512 --layers 8 --words 8000 --length 256 --rounds 9
    python benchmarks/lm_cost.py --device cuda --threads 4

===============  ==================================================================================
``plain``        AdamW on the mean loss of the tokens, written by hand
``central``      weights of sources, two forward passes at displaced parameters
``one-sided``    one such pass, and the losses of the training step
``every 4``      as ``central``, a step of the weights with every fourth of the model
``rater``        weights of sequences by hidden states of the training pass, as ``central``
``forward``      weights of sources, one pass of dual numbers
===============  ==================================================================================

Once with all parameters trained, and once with LoRA adapters by PEFT; each against plain
fine-tuning of its own kind. Parameters are random and texts too: they do not change the cost. Each
contender has a process of its own, and in each round all of them step in turn while the others
sleep. Needs ``pip install 'metaweight[trl]'``. Times and peak memory are printed, and written as
JSON and Markdown with versions, processor and settings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
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
from torch import Tensor, nn
from turns import Step, environment, markdown, measure

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
    net: nn.Module = LlamaForCausalLM(config)
    if trained == "LoRA":
        from peft import LoraConfig, get_peft_model

        net = get_peft_model(net, LoraConfig(r=8, target_modules="all-linear"))
    return net.to(shape.device)


class Batches:
    """Texts at random, of one seed for each batch."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.seed = shape, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in count():
            draw = torch.Generator().manual_seed(1000 * self.seed + number)
            size = (self.shape.batch, self.shape.length)
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
    net, batches = model(shape, trained).train(), iter(Batches(shape, 1))
    optimizer = adamw(net)

    def step() -> float:
        for _ in range(steps):
            ids = next(batches)["input_ids"]
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
        train_data_loader=Batches(shape, 1),
    )
    top = CleanLM(
        "weights",
        model="lm",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), 1e-3),
        train_data_loader=Batches(shape, 2),
    )
    last = Last()
    settings = {"train_iters": 1, "valid_step": 10**9, "progress": False}
    engine = Engine.bilevel(top, lm, hooks=[last], device=shape.device, **settings)

    def step() -> float:
        for _ in range(steps):
            engine.train_step()
        return float(last.loss)

    return step


def contenders(shape: Shape, trained: str, steps: int = EVERY) -> dict[str, Callable[[], Step]]:
    """Return the makers of all contenders' steps, of ``steps`` of the model each."""
    others = {name: partial(weighted, name, shape, trained, steps) for name in METHODS}
    return {PLAIN: partial(plain, shape, trained, steps), **others}


def versions() -> dict[str, str]:
    """Return the versions of the packages that the model is from."""
    return {name: metadata.version(name) for name in ("transformers", "peft")}


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in asdict(Shape()).items():
        if name != "device":
            parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each contender; default: 1")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; default: 5")
    parser.add_argument("--out", type=Path, default=Path("results/lm_cost"))
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    arguments = parse(given)
    shape = Shape(**{name: getattr(arguments, name) for name in asdict(Shape())})
    around = {**environment(arguments.threads, shape.device), **versions()}
    report: dict[str, Any] = {"environment": around, "shape": asdict(shape), "rows": {}}
    texts = []
    for trained in TRAINED:
        outcomes = measure(
            contenders(shape, trained),
            arguments.threads,
            arguments.rounds,
            1,
            returns_memory=True,
            device=shape.device,
        )
        rows = table(outcomes, PLAIN, EVERY)
        report["rows"][trained] = rows
        texts.append(markdown(rows, f"{trained}, a step of the model"))
        print(f"{texts[-1]}\n", flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "lm_cost.json").write_text(json.dumps(report, indent=2))
        (arguments.out / "lm_cost.md").write_text("\n\n".join(texts) + "\n")
    failed = any(row.get("failed") for rows in report["rows"].values() for row in rows)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
