"""A batch in one line."""

from __future__ import annotations

import hashlib
import re
from collections import UserDict
from types import SimpleNamespace

import torch
from metaweight.problems.data.batch_digest import batch_digest, not_finite_in


def test_tells_shape_type_range_and_hash() -> None:
    x = torch.tensor([[1.0, -2.5], [float("nan"), float("inf")]])
    y = torch.tensor([3, 1])
    expected = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:12]
    assert batch_digest((x, y)) == (
        "[0] float32 (2, 2) from -2.5 to 1, 2 not finite; [1] int64 (2,) from 1 to 3; "
        f"sha256 {expected}"
    )
    assert not_finite_in((x, y)) == 2


def test_finds_tensors_in_any_structure() -> None:
    batch = UserDict({"a": [torch.zeros(1)], "b": {"c": torch.ones(2, dtype=torch.bfloat16)}})
    found = batch_digest(batch)
    assert found.startswith("['a'][0] float32 (1,) from 0 to 0, 0 not finite; ['b']['c'] bfloat16")
    assert batch_digest(SimpleNamespace(x=torch.tensor(True))).startswith(
        ".x bool () from 1 to 1; sha256"
    )


def test_describes_at_most_eight_but_hashes_all() -> None:
    tensors = [torch.full((1,), float(i)) for i in range(10)]
    found = batch_digest(tensors)
    assert "; 2 more tensors; sha256" in found
    tensors[9] += 1
    changed = batch_digest(tensors)
    assert changed != found
    assert re.sub("sha256.*", "", changed) == re.sub("sha256.*", "", found)


def test_odd_tensors_are_described_too() -> None:
    assert batch_digest(torch.empty(0, 3)).startswith("batch float32 (0, 3), 0 not finite; ")
    assert batch_digest(torch.tensor([1j])).startswith("batch complex64 (1,); ")
    sparse = torch.sparse_coo_tensor([[0], [1]], [2.0], (2, 2), check_invariants=True)
    assert batch_digest(sparse).startswith("batch float32 (2, 2) from 0 to 2, 0 not finite")
    assert batch_digest(torch.ones(2, 3).t()).startswith("batch float32 (3, 2) from 1 to 1")
    assert batch_digest(torch.full((2,), float("nan"))).startswith("batch float32 (2,), 2 not fin")


def test_a_batch_without_tensors() -> None:
    assert batch_digest("words") == "type str without tensors"
    assert not_finite_in(None) == 0
