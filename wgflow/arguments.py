"""What kind of thing an argument may be, read off its annotation: the first check of every public name.

An array where a tensor is wanted, 0.5 for a kernel, "kl" for a divergence: a ValueError says what came, what was
wanted, and a way out. Which values of the right kind are good, each function knows itself.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

__all__ = ["checked", "checked_constructor"]

Public = TypeVar("Public", bound=Callable[..., Any])
WORDS = {
    "Tensor": "a torch.Tensor",
    "Kernel": "a Kernel such as Gaussian(0.5)",
    "Divergence": "a Divergence such as ReverseKL()",
    "Density": "a density with log_density and score, such as a KDE",
    "float": "a number",
    "int": "a whole number",
    "bool": "True or False",
    "NoneType": "None",
    "Generator": "a torch.Generator",
}


def checked(public: Public) -> Public:
    """A function that refuses arguments of the wrong kind (ValueError); a class whose public methods do."""
    if isinstance(public, type):
        for name, member in list(vars(public).items()):
            if inspect.isfunction(member) and not name.startswith("_"):
                setattr(public, name, checked(member))
        return checked_constructor(public)  # type: ignore[return-value]
    names = list(inspect.signature(public).parameters)

    @functools.wraps(public)
    def door(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            wanted = _annotated(public)
            for name, value in zip(names, args):  # noqa: B905 - too many of them is Python's own error
                if name in wanted and not _is(value, wanted[name]):
                    raise ValueError(_refusal(name, value, wanted[name]))
            for name, value in kwargs.items():
                if name in wanted and not _is(value, wanted[name]):
                    raise ValueError(_refusal(name, value, wanted[name]))
        return public(*args, **kwargs)

    return door  # type: ignore[return-value]


def checked_constructor(public: Public) -> Public:
    """A class whose constructor alone is checked: what it makes is called many times inside one sum."""
    public.__init__ = checked(public.__init__)  # type: ignore[misc]
    return public


@functools.cache
def _annotated(public: Callable[..., Any]) -> dict[str, Any]:
    """Resolved at the first call, when the modules that the names come from have been imported."""
    hints = get_type_hints(public)
    hints.pop("return", None)
    return hints


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, type) and wanted not in (float, int, bool):
        return isinstance(value, wanted) and not isinstance(value, type)
    if wanted is float or wanted is int:
        return isinstance(value, Real if wanted is float else Integral) and not isinstance(
            value, bool
        )
    if wanted is bool:
        return isinstance(value, bool | np.bool_)
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return any(_is(value, one) for one in get_args(wanted))
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if isinstance(origin, type) and issubclass(origin, Collection):
        element = get_args(wanted)[0]
        return (
            isinstance(value, Collection)
            and not isinstance(value, str | dict)
            and all(_is(v, element) for v in value)
        )
    return True  # Any: whatever the function makes of it


def _refusal(name: str, value: Any, wanted: Any) -> str:
    kinds = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    return f"{name} is {_said(value)}; wanted {' or '.join(map(_words, kinds))}.{_way_out(name, value, kinds)}"


def _said(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, np.ndarray | Tensor):
        return f"a {'numpy array' if isinstance(value, np.ndarray) else 'tensor'} {list(value.shape)} {value.dtype}"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"


def _words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Callable:
        return "a function"
    if (
        isinstance(origin, type)
        and issubclass(origin, Collection)
        and not issubclass(origin, Mapping)
    ):
        return f"a list, each {_words(get_args(kind)[0])}"
    name = getattr(kind, "__name__", str(kind))
    return WORDS.get(name, f"a {name}")


def _way_out(name: str, value: Any, kinds: tuple[Any, ...]) -> str:
    named = {getattr(kind, "__name__", "") for kind in kinds}
    if isinstance(value, type) and any(
        isinstance(kind, type) and issubclass(value, kind) for kind in kinds
    ):
        return f" Call it: {value.__name__}(...)."
    if "Kernel" in named and isinstance(value, Real):
        return f" With the bandwidth: Gaussian({value})."
    if isinstance(value, Tensor) and named & {"float", "int"}:
        return f" One number of a tensor: {name}.item()."
    if "Tensor" in named and not callable(value) and value is not None:
        return f" Convert it: torch.as_tensor({name})."
    if isinstance(value, Real) and not isinstance(value, bool):
        if "Generator" in named:
            return f" From a seed: torch.Generator().manual_seed({value})."
        if "int" in named:
            return f" Round it: int({value})."
    return ""
