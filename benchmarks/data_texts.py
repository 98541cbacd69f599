"""Texts that ship with Python, as sequences of bytes from good and bad sources."""

from __future__ import annotations

import ast
import base64
import sysconfig
import zlib
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

LENGTH, EACH, CLEAN, TEST = 48, 240, 120, 240
"""Bytes of a sequence; sequences of a source, clean ones, and ones to test on."""
GOOD = ("pages", "docstrings")
BAD = ("shuffled", "repeated", "files", "rotated")
SOURCES = (*GOOD, "code", *BAD)
Samples = list[dict[str, Any]]


def pieces(text: str, number: int, draw: torch.Generator) -> list[list[int]]:
    """Return sequences of bytes from random places of a text, none overlapping another."""
    data = text.encode()
    places = torch.randperm(len(data) // LENGTH, generator=draw)[:number].tolist()
    return [list(data[p * LENGTH : (p + 1) * LENGTH]) for p in places]


def rotated_byte(byte: int) -> int:
    """Return a byte with its letter, if it is one, rotated by 13."""
    for first in (65, 97):
        if first <= byte < first + 26:
            return first + (byte - first + 13) % 26
    return byte


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
    pages = pieces("\n".join(topics[n] for n in sorted(topics)), 4 * EACH + CLEAN + TEST, draw)
    clean, test, rest = pages[:CLEAN], pages[CLEAN : CLEAN + TEST], pages[CLEAN + TEST :]
    own, shuffled, repeated, rotated = (rest[i * EACH : (i + 1) * EACH] for i in range(4))
    order = [torch.randperm(LENGTH, generator=draw).tolist() for _ in range(EACH)]
    sources = {
        "pages": own,
        "docstrings": pieces(docstrings, EACH, draw),
        "code": pieces(code, EACH, draw),
        "shuffled": [[p[i] for i in o] for p, o in zip(shuffled, order, strict=True)],
        "repeated": [(p[:4] * LENGTH)[:LENGTH] for p in repeated],
        "files": pieces(files, EACH, draw),
        "rotated": [[rotated_byte(b) for b in p] for p in rotated],
    }
    train = [{"input_ids": p, "source": name} for name, many in sources.items() for p in many]
    return train, [{"input_ids": p} for p in clean], [{"input_ids": p} for p in test]
