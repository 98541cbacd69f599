"""Which sources a language model should learn from: those that help with a few texts as wanted.

A small model reads bytes. It shall write like the pages of Python's ``help()``, and is given more
of these, Python source code, and encoded files. The weight of each source is learned while it
trains; a model that begins anew is then trained on what is left. ::

    python examples/weigh_llm_data.py
"""

from __future__ import annotations

import argparse
import base64
import inspect
import zlib
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.lm import learn_weights

LENGTH = 48
Sample = dict[str, Any]


class Bytes(nn.Module):
    """A recurrent network that predicts the next byte: (B, T) to logits (B, T, 256)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(256, width)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, _ = self.reader(self.words(input_ids))
        logits: Tensor = self.head(hidden)
        return logits


def samples(text: str, number: int, **entries: str) -> list[Sample]:
    """Return at most so many pieces of a text, of ``LENGTH`` bytes each."""
    data = text.encode()[: LENGTH * number]
    starts = range(0, len(data) - LENGTH + 1, LENGTH)
    return [{"input_ids": list(data[i : i + LENGTH]), **entries} for i in starts]


def data(number: int) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Return samples of three sources, a few like those wanted, and others to test on."""
    pages = "\n".join(topics[name] for name in sorted(topics))
    code = inspect.getsource(argparse)
    files = base64.b64encode(zlib.compress(code.encode())).decode()
    texts = {"pages": pages[40_000:], "code": code, "files": files}
    train = [s for name, text in texts.items() for s in samples(text, number, source=name)]
    return train, samples(pages, 150), samples(pages[20_000:], 300)


def plain_loss(train: list[Sample], test: list[Sample], steps: int) -> float:
    """Train a new model plainly and return its loss on ``test``, in nats a byte."""
    torch.manual_seed(0)
    model = Bytes()
    optimizer = torch.optim.AdamW(model.parameters(), 0.005)
    inputs = torch.tensor([sample["input_ids"] for sample in train])
    for _ in range(steps):
        batch = inputs[torch.randint(len(inputs), (16,))]
        optimizer.zero_grad()
        torch.autograd.backward(next_byte_loss(model, batch))
        optimizer.step()
    with torch.no_grad():
        held_out = torch.tensor([sample["input_ids"] for sample in test])
        return float(next_byte_loss(model, held_out))


def next_byte_loss(model: Bytes, batch: Tensor) -> Tensor:
    """Return the mean cross-entropy of each byte given those before it."""
    return F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def main(steps: int = 200) -> tuple[dict[str, float], float, float]:
    """Learn the weights; return them with the test loss of all sources and of those kept."""
    train, clean, test = data(300)
    torch.manual_seed(0)
    model = Bytes()
    optimizer = torch.optim.AdamW(model.parameters(), 0.005)
    found = learn_weights(model, train, clean, optimizer=optimizer, steps=steps, warmup_steps=20)
    weights = {str(name): weight for name, weight in found.sources.items()}
    kept = [sample for sample in train if weights[sample["source"]] > 0.5]
    every, chosen = plain_loss(train, test, steps), plain_loss(kept, test, steps)
    print("weights, of mean 1:", {name: round(weight, 2) for name, weight in weights.items()})
    print(f"test loss of a new model: {every:.3f} on all, {chosen:.3f} on what weighs over 0.5")
    return weights, every, chosen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="steps of each training")
    main(**vars(parser.parse_args()))
