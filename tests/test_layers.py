"""Layers: modules import only those listed before them, and `wgflow` does not depend on reinforcement learning."""

import ast
import importlib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module may import the modules listed before it. A new file or folder gets an entry here; files of one folder may
# import each other, agents excepted (see below).
LIBRARY = [
    "arguments", "distances", "kernels", "reductions", "transport", "density", "bandwidths",
    "divergences", "fields", "functionals", "plots", "trajectory", "flows", "queues", "targets", "bounds", "metrics",
    "distributed", "features", "losses", "testing", "sample_quality",
]  # fmt: skip
LEARNING = [
    "utils", "plugins", "envs", "data", "agents", "training", "curve", "experiments", "profile", "evaluate", "train",
    "actions", "report", "export", "sweep",
]  # fmt: skip
HIDDEN_FROM_AGENTS = {"envs", "training", "experiments", "train"}
SHARED = {
    *(
        "agent",
        "config",
        "networks",
        "implicit_q",
        "losses",
        "sampling",
        "fields",
        "diagnostics",
        "schedules",
    )
}  # files of agents/ that are not an algorithm
DERIVED = {("qam", "fedit")}  # QAM-E edits its chunks as FEdit does

LIBRARY_FILES = sorted((ROOT / "wgflow").rglob("*.py"))
LEARNING_FILES = sorted((ROOT / "wgflow_rl").rglob("*.py"))
AGENT_FILES = sorted(
    path for path in (ROOT / "wgflow_rl" / "agents").glob("[!_]*.py") if path.stem != "presets"
)


def imports(path: Path) -> Iterator[str]:
    """Dotted names a file imports, wherever in the file; `from a import b` gives a.b, relative ones are resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def layer(path: Path) -> str:
    """The entry of the list that a file belongs to: its folder inside the package, or its own name."""
    inside = path.relative_to(ROOT).parts[1:]
    return inside[0].removesuffix(".py")


def is_package(path: Path) -> bool:
    return path.name == "__init__.py" and path.parent.parent == ROOT


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", LIBRARY_FILES + LEARNING_FILES, ids=name_of)
def test_a_module_imports_only_layers_before_it(path):
    package = path.relative_to(ROOT).parts[0]
    order = LIBRARY if package == "wgflow" else LEARNING
    if is_package(path) or path.name == "__main__.py":
        return
    assert layer(path) in order, f"{name_of(path)} is not in the list of tests/test_layers.py"
    later = set(order[order.index(layer(path)) + 1 :])
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == package and len(parts) > 1:
            assert parts[1] not in later, f"{name_of(path)} imports {name}, a later layer"


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=name_of)
def test_the_library_does_not_import_reinforcement_learning(path):
    above = {
        name
        for name in imports(path)
        if name.split(".")[0] in {"wgflow_rl", "gymnasium", "mujoco", "ogbench"}
    }
    assert not above


@pytest.mark.parametrize("path", LEARNING_FILES, ids=name_of)
def test_reinforcement_learning_uses_public_names_of_the_library_only(path):
    import wgflow

    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "wgflow":
            *module, last = parts
            public = getattr(importlib.import_module(".".join(module) or last), "__all__", [last])
            assert last in public or len(parts) == 1, f"{name_of(path)}: {name} is not public"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"wg", "wgflow"}
        ):
            assert node.attr in wgflow.__all__, f"{name_of(path)}: wgflow.{node.attr} is not public"


@pytest.mark.parametrize("path", AGENT_FILES, ids=name_of)
def test_an_agent_imports_no_other_agent_and_no_training(path):
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "wgflow_rl" and len(parts) > 1:
            assert parts[1] not in HIDDEN_FROM_AGENTS, f"{name_of(path)} imports {name}"
            shared = parts[1:2] != ["agents"] or set(parts[2:]) & SHARED
            assert shared or (path.stem, parts[2]) in DERIVED, (
                f"{name_of(path)} imports another agent: {name}"
            )


def test_public_names_exist_and_are_documented():
    import wgflow

    assert len(set(wgflow.__all__)) == len(wgflow.__all__)
    for name in wgflow.__all__:
        thing = getattr(wgflow, name)
        assert not callable(thing) or thing.__doc__, f"wgflow.{name} has no docstring"


@pytest.mark.parametrize("path", LIBRARY_FILES + LEARNING_FILES, ids=name_of)
def test_no_name_of_a_package_hides_a_module_of_it(path):
    """`package.name` would be the function, not the module of that name, for the API reference too."""
    if path.name.startswith("_"):
        return
    package = importlib.import_module(".".join(path.relative_to(ROOT).parent.parts))
    found = getattr(package, path.stem, None)
    assert found is None or isinstance(found, types.ModuleType)
