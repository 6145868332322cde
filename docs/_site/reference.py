"""Small additions to autodoc and autosummary for the API reference; pages follow templates/module.rst."""

from __future__ import annotations

import pkgutil
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.ext import autosummary

import wgflow

DOCS = Path(__file__).resolve().parent.parent
PAGES = DOCS / "generated" / "api"


def offered(module: str, name: str) -> bool:
    """Return True if `import wgflow` offers this member of the module, so that its page can show `wgflow.name`."""
    return name in wgflow.__all__ and getattr(import_module(module), name) is getattr(wgflow, name)


def submodules(module: str) -> list[str]:
    """Return the public modules of a package of wgflow_rl. Packages of wgflow export all their public names."""
    path = getattr(import_module(module), "__path__", ()) if module.startswith("wgflow_rl") else ()
    return [f"{module}.{m.name}" for m in pkgutil.iter_modules(path) if not m.name.startswith("_")]


def has_snippet(module: str) -> bool:
    """Return True if the page of a module begins with an example; tests/test_site.py runs it."""
    return (DOCS / "snippets" / f"{module}.py").exists()


def remove_old_pages(app: Any, config: Any) -> None:
    """Remove the pages of earlier builds: autosummary never deletes those of modules that are gone."""
    shutil.rmtree(PAGES, ignore_errors=True)


def escape_bars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep |x - y| in a docstring a norm: reStructuredText would read a substitution."""
    lines[:] = [re.sub(r"(?<![\w`])\|(?=\S)", r"\\|", line) for line in lines]


def skip_field(
    app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any
) -> bool | None:
    """Skip the fields of a NamedTuple, which its signature has: "Alias for field number 0" says nothing."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app: Any) -> dict[str, Any]:
    # A summary is the first sentence, which does not end at "DFP Eq. 3".
    autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.", "Eqs.", "Sec.")
    app.connect("config-inited", remove_old_pages)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
