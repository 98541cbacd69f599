"""Images in folders, some in that of another class: train, list and show the suspicious ones.

``photos`` has a folder a class; ``checked`` the same with a few images that somebody looked at.
This script makes both of scanned digits, a quarter of them moved. Your own may be read alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from metaweight.data import load_image_folder
from metaweight.reweighter import Reweighter


def write_example(photos: Path, checked: Path) -> set[Path]:
    """Write both folders and return the images that are in a wrong one."""
    rng = np.random.default_rng(0)
    scans, digits = load_digits(return_X_y=True)
    moved = set()
    for number in range(1000):
        folder, name = photos / str(digits[number]), f"scan{number:04}.png"
        if number < 80:
            folder = checked / str(digits[number])
        elif rng.random() < 0.25:
            folder = photos / str((digits[number] + rng.integers(1, 10)) % 10)
            moved.add(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = 255 * (1 - scans[number].reshape(8, 8) / 16)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return moved


class Scale(nn.Module):
    """Bring pixels from 0 to 255 to -0.5 to 0.5."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the scaled images."""
        return images / 255 - 0.5


moved = write_example(Path("photos"), Path("checked"))
photos = load_image_folder("photos", size=16)
checked = load_image_folder("checked", size=16, classes=photos.classes)

torch.manual_seed(0)
network = nn.Sequential(
    Scale(),
    *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(32 * 4 * 4, len(photos.classes))),
)
model = Reweighter(network, epochs=15, random_state=0)
model.fit(photos.data.inputs, photos.data.labels, clean=(checked.data.inputs, checked.data.labels))

issues = model.label_issues_
issues["file"] = [str(photos.paths[i]) for i in issues["index"]]
issues.to_csv("suspicious.csv", index=False)

figure = Figure(figsize=(8, 5), layout="constrained")
for axes, row in zip(figure.subplots(3, 7).flat, issues.head(21).itertuples(), strict=False):
    axes.imshow(photos.data.inputs[row.index].permute(1, 2, 0).numpy())
    axes.set_title(f"{photos.classes[row.given]}: {photos.classes[row.suggested]}?")
    axes.set_axis_off()
figure.savefig("suspicious.png")

found = sum(Path(file) in moved for file in issues["file"])
print(f"{len(issues)} images listed, {found} of the {len(moved)} in a wrong folder among them")
