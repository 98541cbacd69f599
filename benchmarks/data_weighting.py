"""Learned weights of sources and sequences against what people do without them, on Python's texts.

::

    python benchmarks/data_weighting.py                # the records, one seed after the other
    python benchmarks/data_weighting.py --seeds 1 --steps 40 --out results/data_weighting

A byte model shall write like the pages of ``help()``. Its sources are more pages, docstrings,
source code, and bad ones: pages with shuffled bytes, repetitions, encoded files, and pages in
another alphabet (rotated by 13 letters). All take the same number of steps of the final model:

- ``uniform``: all sequences alike;
- ``loss filter``: the half of the sequences with the lowest loss of a reference, a model trained on
  the clean sequences for as many steps;
- ``difference filter``: the half where that loss is least above the loss of a base, a model trained
  on all sequences;
- ``tuned mixture``: the best of several mixtures, by the loss on the clean sequences;
- ``sources``: weights learned while the model trains; ``every 4 steps``: of the model, which costs
  a quarter;
- ``sequences``: ratings learned while the model trains, by hidden states and the loss;
  ``with reference``: by losses alone, those of the reference too; ``with base``: by the difference;
- ``kept``: what these leave at half of the mean or more, alike, from the start.

Ratings of sequences do not know their source: bad sequences are noise among the others. AUC is that
of good sources over bad ones, source code left out, which is neither. ``each`` says what a source
does: the test loss of a model trained on the pages and it. ``transfer``: a model of twice the width
is trained on what was kept by the small one; the share of its steps saved is that at which it has
the test loss of a model trained on all sequences.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from data_texts import BAD, GOOD, SOURCES, Samples, corpus
from sklearn.metrics import roc_auc_score
from study.files import write_text
from study.versions import versions
from torch import Tensor, nn

from metaweight.lm import LearnedWeights, learn_weights

WIDTH, BATCH = 64, 24
MIXTURES = (("pages",), GOOD, (*GOOD, "code"), SOURCES)
LEAST, CHECKS = 0.5, 20
RESULTS = Path(__file__).parent / "results" / "data_weighting"


class ByteModel(nn.Module):
    """One recurrent layer over bytes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(256, width)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.reader(self.words(input_ids))[0]
        return argparse.Namespace(logits=self.head(hidden), hidden_states=(hidden,))


def tensor(samples: Samples) -> Tensor:
    """Return the bytes of sequences, (N, T)."""
    return torch.tensor([sample["input_ids"] for sample in samples])


@torch.no_grad()
def losses(model: nn.Module, samples: Samples) -> Tensor:
    """Return the mean loss of a byte in each sequence, (N,)."""
    ids = tensor(samples)
    logits = model(ids).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


class Run:
    """All methods on the texts of one seed."""

    def __init__(self, seed: int, steps: int) -> None:
        self.seed, self.steps = seed, steps
        self.train, self.clean, self.test = corpus(seed)

    def model(self, times: int = 1) -> tuple[ByteModel, torch.optim.Optimizer]:
        """Return a model, of a multiple of the width, and its optimizer, the same for all."""
        torch.manual_seed(self.seed)
        made = ByteModel(times * WIDTH)
        return made, torch.optim.AdamW(made.parameters(), 0.005)

    def plain(
        self, samples: Samples, times: int = 1, until: float = 0.0
    ) -> tuple[ByteModel, float]:
        """Train on sequences, all alike; return the model and the share of the steps after which it
        was first seen to have a test loss of ``until``, 1 if it never was."""
        model, optimizer = self.model(times)
        ids, draw = tensor(samples), torch.Generator().manual_seed(self.seed)
        reached, every = 1.0, max(1, self.steps // CHECKS)
        for step in range(1, self.steps + 1):
            chosen = ids[torch.randint(len(ids), (BATCH,), generator=draw)]
            logits = model(chosen).logits[:, :-1]
            optimizer.zero_grad()
            F.cross_entropy(logits.transpose(1, 2), chosen[:, 1:]).backward()
            optimizer.step()
            if until and reached == 1 and step % every == 0 and self.test_loss(model) <= until:
                reached = step / self.steps
        return model, reached

    def learned(
        self,
        level: Any,
        reference: ByteModel | None = None,
        base: ByteModel | None = None,
        every: int = 1,
    ) -> tuple[ByteModel, LearnedWeights]:
        """Train on weighted sequences."""
        model, optimizer = self.model()
        found = learn_weights(
            model,
            self.train,
            self.clean,
            level=level,
            steps=self.steps,
            batch_size=BATCH if level == "source" else 2 * BATCH,
            clean_batch_size=BATCH,
            warmup_steps=self.steps // 5,
            every=every,
            optimizer=optimizer,
            weight_learning_rate=0.05 if level == "source" else 0.003,
            reference=reference,
            base=base,
            seed=self.seed,
        )
        return model, found

    def of(self, *names: str) -> Samples:
        """Return the sequences of some sources."""
        return [sample for sample in self.train if sample["source"] in names]

    def test_loss(self, model: ByteModel) -> float:
        """Return the mean loss of a byte of the test sequences, in nats."""
        return float(losses(model, self.test).mean())

    def auc(self, ratings: Sequence[float]) -> float:
        """Return the probability that a sequence of a good source is rated above one of a bad."""
        rated = [
            (sample["source"] in GOOD, rating)
            for sample, rating in zip(self.train, ratings, strict=True)
            if sample["source"] in (*GOOD, *BAD)
        ]
        return float(roc_auc_score(*zip(*rated, strict=True)))

    def auc_of(self, found: LearnedWeights) -> float:
        """Return the AUC of the ratings of what was learned."""
        return self.auc([sample["rating"] for sample in found.rate(self.train)])

    def lowest(self, found: Tensor) -> Samples:
        """Return the half of the sequences of which a number is lowest."""
        return [self.train[i] for i in found.argsort()[: len(self.train) // 2].tolist()]

    def measured(self) -> dict[str, Any]:
        """Return the record of this seed."""
        base, reference = self.plain(self.train)[0], self.plain(self.clean)[0]
        of_reference = losses(reference, self.train)
        above = of_reference - losses(base, self.train)
        filtered = {
            "loss filter": self.lowest(of_reference),
            "difference filter": self.lowest(above),
        }
        models = {"uniform": base}
        models |= {name: self.plain(samples)[0] for name, samples in filtered.items()}
        mixtures = [self.plain(self.of(*names))[0] for names in MIXTURES]
        models["tuned mixture"] = min(mixtures, key=lambda m: float(losses(m, self.clean).mean()))
        models["sources"], by_source = self.learned("source")
        weights = by_source.sources
        names = [str(name) for name, weight in weights.items() if weight >= LEAST]
        models["sources, kept"] = self.plain(self.of(*names))[0]
        models["sources, every 4 steps"], seldom = self.learned("source", every=4)
        models["sequences"], alone = self.learned("sequence")
        models["sequences, with reference"], by_reference = self.learned("sequence", reference)
        models["sequences, with base"], rater = self.learned("sequence", reference, base)
        kept = [sample for sample in rater.rate(self.train) if sample["rating"] >= LEAST]
        models["sequences, with base, kept"] = self.plain(kept)[0]
        return {
            "seed": self.seed,
            "steps": self.steps,
            "test_loss": {name: self.test_loss(model) for name, model in models.items()},
            "each": {s: self.test_loss(self.plain(self.of("pages", s))[0]) for s in SOURCES},
            "sources": {str(name): weight for name, weight in weights.items()},
            "auc": {
                "loss filter": self.auc((-of_reference).tolist()),
                "difference filter": self.auc((-above).tolist()),
                "sources": self.auc([weights[sample["source"]] for sample in self.train]),
                "sources, every 4 steps": self.auc(
                    [seldom.sources[sample["source"]] for sample in self.train]
                ),
                "sequences": self.auc_of(alone),
                "sequences, with reference": self.auc_of(by_reference),
                "sequences, with base": self.auc_of(rater),
            },
            "kept": len(kept) / len(self.train),
            "transfer": self.transfer({**filtered, "sequences": kept}),
            **versions("cpu"),
        }

    def transfer(self, kept: Mapping[str, Samples]) -> dict[str, Any]:
        """Return the test losses of a wider model on all sequences and on those kept, and the share
        of its steps that is saved at the loss that it has on all."""
        wide = self.test_loss(self.plain(self.train, times=2)[0])
        found = {name: self.plain(samples, times=2, until=wide) for name, samples in kept.items()}
        return {
            "test_loss": {"uniform": wide, **{n: self.test_loss(m) for n, (m, _) in found.items()}},
            "saved": {name: 1 - reached for name, (_, reached) in found.items()},
        }


TABLES: Mapping[str, tuple[str, ...]] = {
    "test loss in nats a byte": ("test_loss",),
    "AUC of good sources": ("auc",),
    "test loss of pages and this source alone": ("each",),
    "test loss of a model of twice the width": ("transfer", "test_loss"),
    "share of its steps saved by": ("transfer", "saved"),
}
"""What is shown of the records: title of a table, and where it is."""


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return means and standard deviations over seeds."""
    lines = []
    for title, keys in TABLES.items():
        lines += [f"| {title} | mean | deviation |", "|:--|--:|--:|"]
        found = [functools.reduce(operator.getitem, keys, record) for record in records]
        for name in found[0]:
            values = [one[name] for one in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            lines.append(f"| {name} | {statistics.mean(values):.3f} | {spread:.3f} |")
        lines.append("")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Make the records that are missing, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    records = []
    for seed in range(given.seeds):
        path = given.out / f"steps{given.steps}-seed{seed}.json"
        if not path.exists():
            write_text(path, json.dumps(Run(seed, given.steps).measured(), indent=1) + "\n")
        records.append(json.loads(path.read_text()))
    print(table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
