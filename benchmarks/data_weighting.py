"""Learned weights of sources and sequences against what people do without them, on Python's texts.

::

    python benchmarks/data_weighting.py                # the records, one seed after the other
    python benchmarks/data_weighting.py --seeds 1 --steps 40 --out results/data_weighting

A byte model shall write like the pages of ``help()``. Its sources are more pages, docstrings, and
bad ones: pages with shuffled bytes, repetitions, source code, encoded files, and pages that go on
with the end of another. All methods take the same number of steps of the final model:

- ``uniform``: all sequences alike;
- ``loss filter``: the half of the sequences with the lowest loss of a model trained on clean text;
- ``tuned mixture``: the best of several mixtures, by the loss on the clean sequences;
- ``sources``, ``sequences``: weights learned while the model trains;
- ``sources, kept``: the sources that learned weights leave at half of 1 or more, alike, from the
  start; ``sequences, kept``: the half with the highest ratings, likewise.

Ratings of sequences do not know their source: bad sequences are noise among the others.
Pages with a wrong end were planted as bad, and count so in the AUC; for a model that reads 48 bytes
they are two short pieces of good text, and may well be weighted so.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import statistics
import sys
import sysconfig
import zlib
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from study.files import write_text
from study.versions import versions
from torch import Tensor, nn

from metaweight.lm import LearnedWeights, learn_weights

LENGTH, WIDTH, BATCH = 48, 64, 24
EACH, CLEAN, TEST = 240, 120, 240
GOOD = ("pages", "docstrings")
BAD = ("shuffled", "repeated", "code", "files", "wrong end")
MIXTURES = (("pages",), GOOD, (*GOOD, "code"), (*GOOD, *BAD))
RESULTS = Path(__file__).parent / "results" / "data_weighting"
Samples = list[dict[str, Any]]


class ByteModel(nn.Module):
    """One recurrent layer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(256, WIDTH)
        self.reader = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.reader(self.words(input_ids))[0]
        return argparse.Namespace(logits=self.head(hidden), hidden_states=(hidden,))


def pieces(text: str, number: int, draw: torch.Generator) -> list[list[int]]:
    """Return sequences of bytes from random places of a text, none overlapping another."""
    data = text.encode()
    places = torch.randperm(len(data) // LENGTH, generator=draw)[:number].tolist()
    return [list(data[p * LENGTH : (p + 1) * LENGTH]) for p in places]


def standard_library() -> tuple[str, str]:
    """Return docstrings and source code of the standard library, a few modules of it."""
    docs, code = [], []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]:
        text = path.read_text(errors="ignore")
        code.append(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                docs.append(ast.get_docstring(node) or "")
    return "\n".join(docs), "\n".join(code)


def corpus(seed: int) -> tuple[Samples, Samples, Samples]:
    """Return sequences to train on, with sources, clean ones, and others to test on."""
    draw = torch.Generator().manual_seed(seed)
    docstrings, code = standard_library()
    files = base64.b64encode(zlib.compress(code.encode())).decode()
    pages = pieces("\n".join(topics[n] for n in sorted(topics)), 5 * EACH + CLEAN + TEST, draw)
    clean, test, rest = pages[:CLEAN], pages[CLEAN : CLEAN + TEST], pages[CLEAN + TEST :]
    own, shuffled, repeated, heads, tails = (rest[i * EACH : (i + 1) * EACH] for i in range(5))
    half = LENGTH // 2
    order = [torch.randperm(LENGTH, generator=draw).tolist() for _ in range(EACH)]
    sources = {
        "pages": own,
        "docstrings": pieces(docstrings, EACH, draw),
        "shuffled": [[p[i] for i in o] for p, o in zip(shuffled, order, strict=True)],
        "repeated": [(p[:4] * LENGTH)[:LENGTH] for p in repeated],
        "code": pieces(code, EACH, draw),
        "files": pieces(files, EACH, draw),
        "wrong end": [a[:half] + b[half:] for a, b in zip(heads, tails, strict=True)],
    }
    train = [{"input_ids": p, "source": name} for name, many in sources.items() for p in many]
    return train, [{"input_ids": p} for p in clean], [{"input_ids": p} for p in test]


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

    def model(self) -> tuple[ByteModel, torch.optim.Optimizer]:
        """Return a model and its optimizer, the same for all methods."""
        torch.manual_seed(self.seed)
        made = ByteModel()
        return made, torch.optim.AdamW(made.parameters(), 0.005)

    def plain(self, samples: Samples) -> ByteModel:
        """Train on sequences, all alike."""
        model, optimizer = self.model()
        ids, draw = tensor(samples), torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            chosen = ids[torch.randint(len(ids), (BATCH,), generator=draw)]
            logits = model(chosen).logits[:, :-1]
            optimizer.zero_grad()
            F.cross_entropy(logits.transpose(1, 2), chosen[:, 1:]).backward()
            optimizer.step()
        return model

    def learned(self, level: Any) -> tuple[ByteModel, LearnedWeights]:
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
            optimizer=optimizer,
            weight_learning_rate=0.05 if level == "source" else 0.003,
            seed=self.seed,
        )
        return model, found

    def of(self, *names: str) -> Samples:
        """Return the sequences of some sources."""
        return [sample for sample in self.train if sample["source"] in names]

    def measured(self) -> dict[str, Any]:
        """Return the record of this seed."""
        models = {"uniform": self.plain(self.train)}
        reference = losses(self.plain(self.clean), self.train)
        lowest = reference.argsort()[: len(self.train) // 2].tolist()
        models["loss filter"] = self.plain([self.train[i] for i in lowest])
        mixtures = [self.plain(self.of(*names)) for names in MIXTURES]
        models["tuned mixture"] = min(mixtures, key=lambda m: float(losses(m, self.clean).mean()))
        models["sources"], by_source = self.learned("source")
        kept = [str(name) for name, weight in by_source.sources.items() if weight >= 0.5]
        models["sources, kept"] = self.plain(self.of(*kept))
        models["sequences"], rater = self.learned("sequence")
        models["sequences, kept"] = self.plain(rater.rate(self.train, keep=0.5))
        good = [sample["source"] in GOOD for sample in self.train]

        def auc(values: Any) -> float:
            return float(roc_auc_score(good, values))

        weights = by_source.sources
        return {
            "seed": self.seed,
            "steps": self.steps,
            "test_loss": {n: float(losses(m, self.test).mean()) for n, m in models.items()},
            "sources": {str(name): weight for name, weight in weights.items()},
            "auc": {
                "loss filter": auc(-reference),
                "sources": auc([weights[sample["source"]] for sample in self.train]),
                "sequences": auc([sample["rating"] for sample in rater.rate(self.train)]),
            },
            **versions("cpu"),
        }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return means and standard deviations over seeds."""
    lines = []
    for title, key in (("test loss in nats a byte", "test_loss"), ("AUC of good sources", "auc")):
        lines += [f"| {title} | mean | deviation |", "|:--|--:|--:|"]
        for name in records[0][key]:
            values = [record[key][name] for record in records]
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
