"""Plugins: modules of other packages that register methods, environments, data readers or row callbacks on import.

An installed package names its module as an entry point of the group `wgflow_rl.plugins`, which every process imports
before it looks up a name. A module that is not installed is named by `--plugin`; `config.json` keeps the name.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import tyro

from wgflow_rl.utils.cli import UserError

GROUP = "wgflow_rl.plugins"

Flag = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="MODULE",
        help="Import this module, which registers methods or environments; may be repeated. "
        "Installed plugins need no flag.",
    ),
]

_imported: list[str] = []  # modules named by flags or by a run's config.json
_found = False  # entry points have been imported


def load(modules: Iterable[str], *, optional: bool = False) -> None:
    """Import modules by name; they are found as by `python -m`, in the current folder too.

    Args:
        modules: names of modules, such as "my_package.plugin", or "line" for line.py.
        optional: warn (RuntimeWarning) about a module that is not installed, or needs one that is
            not, instead of raising.

    Raises:
        UserError: If a name is invalid, or an import fails; the message names the module.
    """
    for name in modules:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            raise UserError(
                f"--plugin is {name!r}; wanted the name of a module, such as line for line.py in this folder"
            )
        folder = _search_current_folder()
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            reason = f"the plugin {name!r} cannot be imported from {folder} ({error})"
            if not optional:
                raise UserError(
                    f"{reason}. Install its package, or run the command in the folder of its file."
                ) from error
            warnings.warn(f"{reason}; going on without it", RuntimeWarning, stacklevel=2)
            continue
        except Exception as error:
            raise UserError(
                f"the plugin {name!r} failed on import: {type(error).__name__}: {error}"
            ) from error
        if name not in _imported:
            _imported.append(name)


def _search_current_folder() -> str:
    """Let console scripts import from the current folder too, as `python -m` does; return the folder."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    return folder


def refuse_inside(folder: Path, modules: Iterable[str]) -> None:
    """Raise UserError if a module would be imported from `folder`, a run that may have come from elsewhere."""
    for name in modules:
        if any(Path(place).resolve().is_relative_to(folder.resolve()) for place in _places(name)):
            raise UserError(
                f"config.json of {folder} names the plugin {name!r}, whose file lies in that folder; runs bring no "
                "code with them. If you trust the file, put it elsewhere."
            )


def _places(name: str) -> Iterator[str]:
    """Files and folders that the import of a module would read, found without importing anything."""
    _search_current_folder()
    search = sys.path
    # Each package on the way: a folder without code in it is a package too, as runs/ of runs.RUN.module.
    for part in name.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, search)
        if spec is None:
            return
        search = list(spec.submodule_search_locations or ())
        yield from filter(None, (*search, spec.origin))


def check_name(kind: str, name: str) -> None:
    """Raise ValueError unless a registered name can be part of a file's name."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(
            f"{kind} is {name!r}; wanted letters, digits and -_.+ alone, since folders are named after it"
        )


def load_installed() -> None:
    """Import the entry points of the group `wgflow_rl.plugins`, once per process.

    Raises:
        UserError: If an import fails; the message names the package.
    """
    global _found
    if _found:
        return
    _found = True  # before the imports, whose registrations come here again
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else "unknown"
            raise UserError(
                f"the plugin {entry.name!r} of the installed package {package} failed on import "
                f"({type(error).__name__}: {error}); repair it, or uninstall it: pip uninstall {package}"
            ) from error


def imported() -> tuple[str, ...]:
    """Names of the modules that `load` has imported, for processes that this one starts."""
    return tuple(_imported)
