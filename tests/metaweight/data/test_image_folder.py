"""Images in folders and lists, written for each test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaweight import DataError
from metaweight.data import LabelledImages, load_image_folder

SIZES = {"cat/b.png": (8, 8), "cat/a.png": (12, 8), "ant/deep/c.png": (8, 20), "bee/d.jpg": (9, 9)}
ORDER = ["ant/deep/c.png", "bee/d.jpg", "cat/a.png", "cat/b.png"]


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of three classes."""
    for name, (width, height) in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(width, height)).save(path)
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def listed(folder: Path, *rows: str, header: str = "path,label") -> Path:
    (folder / "list.csv").write_text("\n".join((header, *rows)) + "\n")
    return folder / "list.csv"


def test_a_folder_a_class(folder: Path) -> None:
    found = load_image_folder(folder, 8)
    assert isinstance(found, LabelledImages)
    assert found.classes == ("ant", "bee", "cat")
    assert [str(path.relative_to(folder)) for path in found.paths] == ORDER
    data = found.data
    assert (data.inputs.dtype, data.inputs.shape) == (torch.uint8, (4, 3, 8, 8))
    assert data.labels.tolist() == data.clean_labels.tolist() == [0, 1, 2, 2]
    assert data.indices.tolist() == [0, 1, 2, 3]
    assert data.num_classes == 3
    # One that has the size is as it was; of one whose shorter side has it, the centre is.
    assert torch.equal(data.inputs[3], torch.from_numpy(noise(8, 8)).permute(2, 0, 1))
    assert torch.equal(data.inputs[2], torch.from_numpy(noise(12, 8)[:, 2:10]).permute(2, 0, 1))
    assert torch.equal(data.inputs[0], torch.from_numpy(noise(8, 20)[6:14]).permute(2, 0, 1))


def test_the_shorter_side_is_scaled_to_the_size(folder: Path) -> None:
    plain = np.zeros((30, 60, 3), dtype=np.uint8)
    # Whose centre is white, with a margin for the filter of the scaling.
    plain[:, 12:48] = 255
    Image.fromarray(plain).save(folder / "cat" / "b.png")
    found = load_image_folder(folder, 10).data
    assert found.inputs.shape == (4, 3, 10, 10)
    assert (found.inputs[3] == 255).all()


def test_images_of_other_kinds_become_red_green_blue(folder: Path) -> None:
    grey = noise(8, 8)[:, :, 0]
    Image.fromarray(grey).save(folder / "cat" / "b.png")
    Image.fromarray(np.dstack([noise(8, 8), grey])).save(folder / "cat" / "a.png")
    found = load_image_folder(folder, 8).data.inputs
    assert torch.equal(found[3], torch.from_numpy(grey).expand(3, 8, 8))
    assert torch.equal(found[2], torch.from_numpy(noise(8, 8)).permute(2, 0, 1))


def test_a_list_keeps_its_order(folder: Path) -> None:
    file = listed(folder, "cat/b.png, cat ,1", "", "bee/d.jpg,bee,2", header="\ufeffpath,label,n")
    found = load_image_folder(file, 8)
    assert found.classes == ("bee", "cat")
    assert found.data.labels.tolist() == [1, 0]
    assert found.paths == (folder / "cat/b.png", folder / "bee/d.jpg")
    assert torch.equal(found.data.inputs[0], load_image_folder(folder, 8).data.inputs[3])


def test_classes_give_the_order_of_labels(folder: Path) -> None:
    order = ["cat", "ant", "bee"]
    assert load_image_folder(folder, 8, classes=order).data.labels.tolist() == [1, 2, 0, 0]
    rows = ("cat/b.png,cat", "bee/d.jpg,bee", "ant/deep/c.png,ant")
    found = load_image_folder(listed(folder, *rows), 8, classes=order)
    assert found.data.labels.tolist() == [0, 2, 1]
    assert found.classes == ("cat", "ant", "bee")


def refused(message: str) -> Any:
    return pytest.raises(DataError, match=message)


def test_a_place_without_images_is_refused(folder: Path, tmp_path: Path) -> None:
    with refused(r"nowhere, which is neither a folder nor a CSV file; give a folder with one sub"):
        load_image_folder(tmp_path / "nowhere")
    with refused("which is neither a folder nor a CSV file"):
        load_image_folder(folder / "cat" / "a.png")
    for empty in (tmp_path / "empty", folder / "ant" / "deep"):
        empty.mkdir(exist_ok=True)
        with refused("has no images; put those of each class into a sub-folder"):
            load_image_folder(empty)
    with refused("has no images"):
        load_image_folder(listed(folder))


@pytest.mark.parametrize("size", [0, 8.0, "8", None])
def test_a_size_that_is_none_is_refused(size: Any, folder: Path) -> None:
    with refused(r"asked for size=.*; give the pixels of a side"):
        load_image_folder(folder, size)


def test_classes_without_images_are_named(folder: Path) -> None:
    for name in ("dog", "elk"):
        (folder / name).mkdir()
    with refused(r"images has no image of the classes 'dog', 'elk'; add some"):
        load_image_folder(folder)
    shutil.rmtree(folder / "dog")
    with refused("'elk'"):
        load_image_folder(folder)


def test_other_classes_are_named(folder: Path) -> None:
    with refused("has the classes 'bee', which are not among the classes 'ant', 'cat'; correct"):
        load_image_folder(folder, classes=["ant", "cat"])
    with refused("has no image of the classes 'dog'"):
        load_image_folder(folder, classes=["ant", "bee", "cat", "dog"])
    with refused("give a list of names, each once"):
        load_image_folder(folder, classes=["ant", "bee", "cat", "cat"])
    with refused("give a list of names, each once"):
        load_image_folder(folder, classes="abc")  # type: ignore[arg-type]
    with refused("has the classes 'catt', which are not among"):
        load_image_folder(listed(folder, "cat/b.png,catt"), classes=["cat"])
    many = [f"cat/b.png,{n}" for n in range(8)]
    with refused("has the classes '0', '1', '2', '3', '4' and 3 more, which"):
        load_image_folder(listed(folder, *many), classes=["cat"])


def test_up_to_five_broken_images_are_named(folder: Path) -> None:
    whole = (folder / "bee" / "d.jpg").read_bytes()
    (folder / "bee" / "d.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "a.png").write_bytes(b"no image")
    with refused(r"^2 image files cannot be read.*bee/d.jpg \(OSError: .*cat/a.png \(Unidentified"):
        load_image_folder(folder)
    for n in range(7):
        (folder / "cat" / f"{n}.png").write_bytes(b"")
    with refused("^5 image files cannot be read") as error:
        load_image_folder(folder)
    assert str(error.value).count(".png (") + str(error.value).count(".jpg (") == 5


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path;label", "cat/b.png;cat", "has the columns path;label, but not path and label"),
        ("path,class", "cat/b.png,cat", "has the columns path, class, but not label; its first"),
        ("", "", r"has the columns \(none\), but not path and label"),
        ("path,label", "cat/b.png", "Row 3 of .* has no label; complete or remove it"),
        ("path,label", ",cat", "Row 3 of .* has no path"),
        ("path,label", "cat/x.png,cat", "Row 3 of .* names 'cat/x.png', but there is no file"),
        ("path,label", "cat,cat", "Row 3 of .* names 'cat', but there is no file"),
    ],
)
def test_a_list_with_a_mistake_is_refused(
    header: str, row: str, message: str, folder: Path
) -> None:
    with refused(message):
        load_image_folder(listed(folder, "cat/b.png,cat", row, header=header))


def test_a_list_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "list.csv").write_bytes(b"path,label\ncaf\xe9.png,cat\n")
    with refused(r"list.csv cannot be read as a CSV file in UTF-8 \(.*0xe9"):
        load_image_folder(folder / "list.csv")


def test_images_are_on_the_host_whatever_the_default_device(folder: Path) -> None:
    expected = load_image_folder(folder, 8).data
    with torch.device("meta"):
        found = load_image_folder(folder, 8).data
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.labels, expected.labels)


def test_wide_grey_images_keep_their_greys(tmp_path: Path) -> None:
    """Every 16-bit number of 257 k is the 8-bit grey k."""
    greys = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(greys * 257).save(tmp_path / name / "x.png")
    found = load_image_folder(tmp_path, 8).data.inputs
    expected = torch.from_numpy(greys.astype(np.uint8)).expand(2, 3, 8, 8)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("mode", "dtype"), [("F", np.float32), ("I", np.int32)])
def test_images_without_a_white_are_refused(tmp_path: Path, mode: str, dtype: type) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / name / "x.tif")
    with pytest.raises(DataError, match=f"x.tif .*its mode {mode} does not say .*; save it with 8"):
        load_image_folder(tmp_path, 8)


def test_images_are_turned_as_their_camera_was(tmp_path: Path) -> None:
    """Orientation 3: the first row of the file is the last of the picture, from right to left."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image = Image.fromarray(noise(8, 8))
        exif = image.getexif()
        exif[0x112] = 3
        image.save(tmp_path / name / "x.png", exif=exif)
    expected = torch.from_numpy(noise(8, 8)[::-1, ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(load_image_folder(tmp_path, 8).data.inputs[0], expected)
