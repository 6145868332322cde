"""The gallery: an example is a plain script that takes the name of its picture as its argument.

Sphinx-Gallery wants reST with a title in a docstring; here the title is the file's name and the docstring is read as
those of the library are.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import docstrings
from sphinx_gallery.scrapers import figure_rst


def argv(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The arguments an example is run with: its picture goes to the gallery, not beside the example."""
    return [str(_target(gallery_conf, Path(script_vars["src_file"])))]


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """reST of the picture, once it is there; moved to where the gallery looks for it."""
    written = _target(gallery_conf, Path(block_vars["src_file"]))
    if not written.exists():
        return ""
    path = Path(next(block_vars["image_path_iterator"]))
    written.replace(path)
    return figure_rst([str(path)], gallery_conf["src_dir"])


def _target(gallery_conf: dict[str, Any], example: Path) -> Path:
    folder = Path(gallery_conf["src_dir"]) / "_build" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{example.stem}.png"


def source_read(app: Any, docname: str, content: list[str]) -> None:
    """Give the page of an example its title."""
    folder, _, stem = docname.rpartition("/")
    example = Path(app.srcdir).parent / "examples" / f"{stem}.py"
    if folder != "gallery" or not example.exists():
        return
    text = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8")), clean=False)
    assert text is not None, f"{example.name} has no docstring"
    title = stem.replace("_", " ").capitalize()
    page = "\n".join([title, "=" * len(title), "", *docstrings.as_rst(text.strip().splitlines())])
    content[0] = content[0].replace(text.strip(), page, 1)


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
