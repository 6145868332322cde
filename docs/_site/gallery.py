"""The gallery: examples in the reading order of examples/README.md, one panel each as thumbnail."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
SIZE = (400, 280)
# (panels per row, rows, panel) of the picture of each example: a thumbnail of all is unreadable.
PANELS = {
    "bandit_policy": (4, 1, 3),
    "digits": (5, 1, 1),
    "divergences": (4, 2, 3),
    "first_drift": (4, 1, 0),
    "gradient_flows": (4, 1, 1),
    "kernels_and_shadows": (2, 2, 0),
    "one_positive": (5, 1, 4),
    "one_step_generator": (3, 1, 1),
    "proposition_one": (3, 1, 1),
    "sharded_density": (3, 1, 2),
    "training_loop": (4, 1, 1),
}
WITHOUT_PICTURE = {"run_policy_onnx": "benchmarks/results/actions.png"}


class ReadingOrder:
    """Sphinx-Gallery's sort key: where a file stands in the list. Raises: ValueError for one that is not in it."""

    def __init__(self, folder: str):
        listed = (Path(folder) / "README.md").read_text(encoding="utf-8")
        self.names = re.findall(r"\]\((\w+\.py)\)", listed)

    def __call__(self, name: str) -> int:
        return self.names.index(name)


def thumbnails(app: Any) -> None:
    """Replace the thumbnails that Sphinx-Gallery made by single panels."""
    from PIL import Image

    images = DOCS / "gallery" / "images"
    for stem, (columns, rows, panel) in PANELS.items():
        picture = images / f"sphx_glr_{stem}_001.png"
        if not picture.exists():  # the examples were not run
            continue
        with Image.open(picture) as whole:
            width, height = whole.width / columns, whole.height / rows
            left, top = panel % columns * width, panel // columns * height
            part = whole.convert("RGB").crop(
                (round(left), round(top), round(left + width), round(top + height))
            )
        _save(part, images / "thumb" / f"sphx_glr_{stem}_thumb.png")
    for stem, picture in WITHOUT_PICTURE.items():
        with Image.open(DOCS.parent / picture) as whole:
            _save(whole.convert("RGB"), images / "thumb" / f"sphx_glr_{stem}_thumb.png")


def _save(picture: Any, path: Path) -> None:
    """Save on white, in the size of a thumbnail."""
    from PIL import Image, ImageOps

    picture = ImageOps.contain(picture, SIZE)
    page = Image.new("RGB", SIZE, "white")
    page.paste(picture, ((SIZE[0] - picture.width) // 2, (SIZE[1] - picture.height) // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", thumbnails, priority=900)  # after the gallery itself
    return {"parallel_read_safe": True, "parallel_write_safe": True}
