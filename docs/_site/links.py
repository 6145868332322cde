"""Relative links lead to the same place on the site as on the repository's pages.

Markdown files outside `docs` that the site shows (changelog, contributing, measured tables) become pages in
`docs/generated`; what else lies outside, rows and pictures, becomes a download.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def shown() -> dict[Path, Path]:
    """Markdown outside `docs` -> its page."""
    pages = {ROOT / name: GENERATED / name.lower() for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
    pages[ROOT / "benchmarks" / "README.md"] = GENERATED / "benchmarks.md"
    results = ROOT / "benchmarks" / "results"
    for table in sorted(results.rglob("*.md")):
        pages[table] = GENERATED / "results" / table.relative_to(results)
    return pages


def destinations() -> dict[Path, Path]:
    """File of the repository -> the page that shows it on the site."""
    return shown() | {ROOT / "examples" / "README.md": DOCS / "gallery" / "index.rst"}


def relink(text: str, source: Path, page: Path, pages: dict[Path, Path]) -> str:
    """Links of the file `source`, as they have to be in `page`. What does not exist is left for Sphinx to report."""

    def move(match: re.Match) -> str:
        target = (source.parent / match[1]).resolve()
        if not target.exists():
            return match[0]
        return os.path.relpath(pages.get(target, target), page.parent) + (match[2] or "")

    return LINK.sub(move, text)


def generate(app: Any) -> None:
    """Write the pages of `shown`, and drop those whose source is gone."""
    pages = shown()
    for source, page in pages.items():
        text = source.read_text(encoding="utf-8")
        if not text.startswith("# "):
            text = f"# {source.stem}\n\n{text}"
        text = relink(text, source, page, destinations())
        if page.name == "benchmarks.md":
            below = (other.relative_to(GENERATED).with_suffix("") for other in pages.values())
            tables = [str(name) for name in below if name.parts[0] == "results"]
            text += "\n```{toctree}\n:hidden:\n\n" + "\n".join(tables) + "\n```\n"
        page.parent.mkdir(parents=True, exist_ok=True)
        if (
            not page.exists() or page.read_text(encoding="utf-8") != text
        ):  # an old page need not be read again
            page.write_text(text, encoding="utf-8")
    for left in set((GENERATED / "results").rglob("*.md")) - set(pages.values()):
        left.unlink()


def source_read(app: Any, docname: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md" and GENERATED not in page.parents:
        content[0] = relink(content[0], page, page, destinations())


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", generate)
    app.connect("source-read", source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
