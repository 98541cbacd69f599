"""What each of several processes does for the tests of weighted language models."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaweight import Config, Engine, Reweighting
from metaweight.lm import CleanLM, Sources, WeightedLM
from metaweight.weighting import MetaWeightNet

from .checks import Check, run_checks
from .fsdp_checks import whole
from .language import LENGTH, WORDS
from .lora import adapted
from .shared_out import run_config

RESULTS: dict[str, Check] = {}
BATCH, UPDATES, SOURCES = 4, 3, 3


def check(function: Check) -> Check:
    """Let all processes run a function, by its name."""
    RESULTS[function.__name__] = function
    return function


class Outputs(NamedTuple):
    """Outputs that torch finds the tensors of."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class BlocksLM(nn.Module):
    """A causal model of blocks that FSDP shards one by one."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)
        )
        self.head = nn.Linear(width, WORDS, bias=False)

    def forward(self, input_ids: Tensor) -> Any:
        read = self.words(input_ids)
        hidden = read.cumsum(1) / (1 + torch.arange(read.shape[1])).unsqueeze(1)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return Outputs(self.head(hidden), (read, hidden))


class HidingLM(BlocksLM):
    """Its outputs are in an object that torch does not look into."""

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(**super().forward(input_ids)._asdict())


def batches(seed: int, rank: int, world: int) -> list[dict[str, Tensor]]:
    """Return this process's share of batches of texts, all of one length."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(UPDATES):
        ids = torch.randint(WORDS, (BATCH, LENGTH), generator=draw)
        source = torch.randint(SOURCES, (BATCH,), generator=draw)
        found.append({"input_ids": ids[rank::world], "source": source[rank::world]})
    return found


def ran(
    level: str,
    rank: int,
    world: int,
    *,
    strategy: str = "distributed",
    lora: bool = False,
    kind: type[BlocksLM] = BlocksLM,
) -> dict[str, Tensor]:
    """Train a model and its weights, and return all parameters."""
    torch.default_generator.manual_seed(7)
    model: nn.Module = kind().double()
    if lora:
        model = adapted(model, "0.0", "1.0", "head")
    weigher = Sources(SOURCES) if level == "source" else MetaWeightNet(5)
    weigher = weigher.double()
    for p in weigher.parameters():
        nn.init.normal_(p, std=0.5)
    trained = [p for p in model.parameters() if p.requires_grad]
    lm = WeightedLM(
        "lm",
        Config(type=Reweighting(), unroll_steps=1),
        weights="weights",
        level=level,  # type: ignore[arg-type]
        module=model,
        optimizer=torch.optim.AdamW(trained, 0.01),
        train_data_loader=batches(1, rank, world),
    )
    top = CleanLM(
        "weights",
        model="lm",
        module=weigher,
        optimizer=torch.optim.Adam(weigher.parameters(), 0.05),
        train_data_loader=batches(2, rank, world),
    )
    edges = {"u2l": {top: [lm]}, "l2u": {lm: [top]}}
    settings = {"train_iters": 2 * UPDATES, "strategy": strategy if world > 1 else "cpu"}
    engine = Engine([top, lm], run_config(world, **settings), edges)
    engine.run()
    return whole(engine)


@check
def full(rank: int, world: int, folder: Path) -> Any:
    return {level: ran(level, rank, world) for level in ("source", "token")}


@check
def low_rank(rank: int, world: int, folder: Path) -> Any:
    return {level: ran(level, rank, world, lora=True) for level in ("source", "token")}


@check
def sharded(rank: int, world: int, folder: Path) -> Any:
    return {level: ran(level, rank, world, strategy="fsdp") for level in ("source", "token")}


@check
def sharded_low_rank(rank: int, world: int, folder: Path) -> Any:
    return {"source": ran("source", rank, world, strategy="fsdp", lora=True)}


def hidden_outputs(rank: int, world: int, folder: Path) -> Any:
    return ran("source", rank, world, strategy="fsdp", kind=HidingLM)


if __name__ == "__main__":
    checks = {**RESULTS, "hidden_outputs": hidden_outputs}
    run_checks(checks, Path(sys.argv[1]), sys.argv[2:])
