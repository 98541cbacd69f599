"""Files of human labels in the authors' form, and in NumPy's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaweight import DataError
from metaweight.data import LabelledTensors, load_human_labels

CLEAN = np.arange(12) % 4
TRAIN = LabelledTensors(torch.zeros(12, 3, 2, 2, dtype=torch.uint8), CLEAN, num_classes=4)
TEN = {
    "clean_label": CLEAN,
    "aggre_label": (CLEAN + (np.arange(12) == 3)) % 4,
    "worse_label": (CLEAN + 1) % 4,
    "random_label1": (CLEAN + 2) % 4,
    "random_label2": (CLEAN + 3) % 4,
    "random_label3": CLEAN[::-1].copy(),
}
HUNDRED = {
    "clean_label": CLEAN,
    "noisy_label": (CLEAN + 2) % 4,
    "noisy_coarse_label": CLEAN // 2,
    "clean_coarse_label": CLEAN // 2,
}


def written(path: Path, content: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
@pytest.mark.parametrize(
    ("content", "which", "key"),
    [
        (TEN, "aggregate", "aggre_label"),
        (TEN, "random1", "random_label1"),
        (TEN, "random2", "random_label2"),
        (TEN, "random3", "random_label3"),
        (TEN, "worst", "worse_label"),
        (HUNDRED, "noisy", "noisy_label"),
    ],
)
def test_labels_are_replaced_and_true_ones_kept(
    content: dict[str, Any], which: str, key: str, suffix: str, tmp_path: Path
) -> None:
    file = written(tmp_path / f"human{suffix}", content)
    found = load_human_labels(file, TRAIN, which)
    assert found.labels.tolist() == content[key].tolist()
    assert found.clean_labels.tolist() == CLEAN.tolist()
    assert found.inputs is TRAIN.inputs
    assert TRAIN.labels.tolist() == CLEAN.tolist()


def test_the_worst_labels_are_the_default(tmp_path: Path) -> None:
    """They are made where the samples are, whatever the default device."""
    file = written(tmp_path / "human.pt", TEN)
    with torch.device("meta"):
        found = load_human_labels(str(file), TRAIN)
    assert found.labels.tolist() == TEN["worse_label"].tolist()


def test_files_written_with_numpy_1_are_read(tmp_path: Path, monkeypatch: Any) -> None:
    """There the function that builds an array was in another module."""
    build: Any = np.empty(0).__reduce__()[0]

    class Earlier(pickle._Pickler):  # type: ignore[name-defined, misc]
        def save_global(self, obj: Any, name: Any = None) -> None:
            if obj is not build:
                return super().save_global(obj, name)  # type: ignore[no-any-return]
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            return self.memoize(obj)  # type: ignore[no-any-return]

    module = type("module", (), {"Pickler": Earlier, **{k: getattr(pickle, k) for k in ("dump",)}})
    torch.save(TEN, tmp_path / "human.pt", pickle_module=module)
    assert b"numpy.core.multiarray" in (tmp_path / "human.pt").read_bytes()
    assert load_human_labels(tmp_path / "human.pt", TRAIN).wrong_labels.all()


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", [".pt", ".npz"])
def test_no_code_of_a_file_is_run(form: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    bad = {**TEN, "worse_label": np.array([Runs(trace)], dtype=object)}
    file = written(tmp_path / f"human{form}", bad)
    with pytest.raises(DataError, match=r"human\.\w+ cannot be read as a file of human labels"):
        load_human_labels(file, TRAIN)
    assert not trace.exists()


def test_what_is_allowed_elsewhere_stays_so(tmp_path: Path) -> None:
    file = written(tmp_path / "human.pt", TEN)
    with torch.serialization.safe_globals([np.ndarray]):
        before = set(torch.serialization.get_safe_globals())
        load_human_labels(file, TRAIN)
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    ("content", "which", "message"),
    [
        (TEN, "wrong", r"asked for 'wrong', but .* has 'aggregate', .*'random3', 'worst'; choose"),
        (TEN, "noisy", r"asked for 'noisy', but .* has 'aggregate'"),
        (HUNDRED, "worst", r"asked for 'worst', but .*human.pt has 'noisy'; choose"),
        ({"a": CLEAN}, "worst", "has no labels of CIFAR-10N or CIFAR-100N"),
        ({"worse_label": CLEAN}, "worst", "has no integers 'clean_label', one for each image"),
        ({**TEN, "worse_label": CLEAN[:, None]}, "worst", "has no integers 'worse_label'"),
        ({k: v[:8] for k, v in TEN.items()}, "worst", r"8 labels, but train has 12 .* whole train"),
        ({**TEN, "clean_label": CLEAN[::-1]}, "worst", "12 of 12 true labels .* official order"),
        ({**TEN, "worse_label": CLEAN + 1}, "worst", r"labels span 1 to 4 but num_classes=4"),
        ([CLEAN], "worst", "holds an object of type list"),
    ],
)
def test_what_does_not_fit_is_refused(
    content: Any, which: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load_human_labels(written(tmp_path / "human.pt", content), TRAIN, which)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pt, which does not exist; put the authors'"):
        load_human_labels(tmp_path / "none.pt", TRAIN)
    for name in ("human.pt", "human.npz"):
        (tmp_path / name).write_text("no labels")
        with pytest.raises(DataError, match=rf"{name} cannot be read as a file of human labels"):
            load_human_labels(tmp_path / name, TRAIN)
