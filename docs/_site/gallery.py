"""The gallery: examples in the reading order of examples/README.md."""

from __future__ import annotations

import re
from pathlib import Path


class ReadingOrder:
    """Sphinx-Gallery's sort key: where a file stands in the list. Raises: ValueError for one that is not in it."""

    def __init__(self, folder: str):
        listed = (Path(folder) / "README.md").read_text(encoding="utf-8")
        self.names = re.findall(r"\]\((\w+\.py)\)", listed)

    def __call__(self, name: str) -> int:
        return self.names.index(name)
