"""The API reference: one page a package, every public name, by module in the order of tests/test_layers.py."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import docstrings

DOCS = Path(__file__).resolve().parent.parent
PAGE = """# {title}

{about}

{parts}"""
PART = """## {title}

```{{eval-rst}}
{directives}
```
"""


def layers() -> tuple[list[str], list[str]]:
    """The modules of both packages, top to bottom, as the test that guards them has them."""
    tree = ast.parse((DOCS.parent / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("LIBRARY", "LEARNING")
    }
    return values["LIBRARY"], values["LEARNING"]


def library() -> str:
    """`wgflow`: what is in `wgflow.__all__`, by module; then its public modules."""
    import wgflow

    rooms, _ = layers()
    parts = []
    for room in rooms:
        if room in wgflow.__all__:
            directives = f".. automodule:: wgflow.{room}\n   :members:"
        else:
            names = [name for name in wgflow.__all__ if _room(getattr(wgflow, name)) == room]
            if not names:
                continue
            directives = f".. automodule:: wgflow.{room}\n   :no-members:\n   :no-index:\n\n"
            directives += "\n\n".join(_directive(wgflow, name) for name in names)
        parts.append(PART.format(title=room, directives=directives))
    about = "`import wgflow as wg`. Points are positional, all else is keyword-only; batches lead: `[..., N, D]`."
    return PAGE.format(title="wgflow", about=about, parts="\n".join(parts))


def _room(thing: Any) -> str:
    return getattr(thing, "__module__", "").removeprefix("wgflow.").partition(".")[0]


def _directive(package: Any, name: str) -> str:
    thing = getattr(package, name)
    if inspect.isclass(thing):
        return f".. autoclass:: {package.__name__}.{name}\n   :members:"
    kind = "autofunction" if callable(thing) else "autodata"
    return f".. {kind}:: {package.__name__}.{name}"


def learning() -> str:
    """`wgflow_rl`: its modules, what each defines."""
    _, rooms = layers()
    root = DOCS.parent / "wgflow_rl"
    parts = []
    for room in rooms:
        files = (
            sorted((root / room).glob("[!_]*.py"))
            if (root / room).is_dir()
            else [root / f"{room}.py"]
        )
        names = [
            ".".join(path.relative_to(DOCS.parent).with_suffix("").parts)
            for path in files
            if path.exists()
        ]
        if (root / room).is_dir():
            names.insert(0, f"wgflow_rl.{room}")
        if names:
            directives = "\n\n".join(f".. automodule:: {name}\n   :members:" for name in names)
            parts.append(PART.format(title=room, directives=directives))
    about = (
        "Each module imports those above it only. Commands are `python -m wgflow_rl.NAME --help`."
    )
    return PAGE.format(title="wgflow_rl", about=about, parts="\n".join(parts))


def generate(app: Any) -> None:
    folder = DOCS / "generated" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("wgflow", library()), ("wgflow_rl", learning())):
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = docstrings.as_rst(lines)


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """A NamedTuple's fields are in its signature; "Alias for field number 0" says nothing."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
