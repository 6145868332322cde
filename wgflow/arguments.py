"""Check the kinds of public arguments, and tell whether the values of a tensor may be read.

`checked` refuses what would otherwise fail far from its cause: an array in place of a tensor, a number in place of a
kernel, a fraction in place of a count. All other mistakes raise where the argument is used.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import numbers
import typing
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from types import NoneType, UnionType
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "capturable",
    "checkable",
    "checked",
    "checked_constructor",
    "draw_device",
    "values_available",
]

Public = TypeVar("Public", bound=Callable[..., Any])
EXAMPLES = {
    "Tensor": "a torch.Tensor",
    "Kernel": "a Kernel such as Gaussian(0.5)",
    "Divergence": "a Divergence such as ReverseKL()",
    "Density": "a density with log_density and score, such as a KDE",
    "Generator": "a torch.Generator",
    "Callable": "a function, or a field such as EnergyField()",
    "Functional": "a functional such as MMD(data, kernel)",
    "int": "an integer",
    "NoneType": "None",
}
IMMEDIATE = ("cpu",)  # devices whose values are read at once: any other first finishes all its work
_capturable: ContextVar[bool] = ContextVar("wgflow_capturable", default=False)


def checked(public: Public) -> Public:
    """Refuse arguments not of the annotated class: tensors, integers, kernels, divergences, densities, functions, ...

    Decorates a function, or a class (its constructor and public methods). Raises: ValueError, naming the argument.
    """
    if isinstance(public, type):
        for name, member in list(vars(public).items()):
            if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
                setattr(public, name, checked(member))
        return public  # pyright: ignore[reportReturnType]
    names = list(inspect.signature(public).parameters)

    @functools.wraps(public)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            classes = _annotations(public)
            for name, value in [*zip(names, args), *kwargs.items()]:  # noqa: B905 - Python counts them
                if name in classes and not _matches(value, classes[name]):
                    raise ValueError(_refusal(name, value, classes[name]))
        return public(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def checked_constructor(public: Public) -> Public:
    """`checked` for the constructor of a class alone."""
    public.__init__ = checked(public.__init__)  # type: ignore[misc]
    return public


@functools.cache
def _annotations(public: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """The alternatives of each annotation that `checked` knows, resolved at the first call."""
    found = {}
    for name, hint in typing.get_type_hints(public).items():
        union = typing.get_origin(hint) in (typing.Union, UnionType)
        alternatives = typing.get_args(hint) if union else (hint,)
        alternatives = tuple(Callable if _returns_tensor(one) else one for one in alternatives)
        if name != "return" and all(_class(one).__name__ in EXAMPLES for one in alternatives):
            found[name] = alternatives
    return found


def _returns_tensor(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Callable and typing.get_args(annotation)[-1] is Tensor


def _class(annotation: Any) -> type:
    """The class of an annotation: K of `K` and of `Sequence[K]`, `object` of any other."""
    if typing.get_origin(annotation) is Sequence:
        annotation = typing.get_args(annotation)[0]
    return annotation if isinstance(annotation, type) else object


def _matches(value: Any, alternatives: tuple[Any, ...]) -> bool:
    for one in alternatives:
        if one is int:
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                return True
        elif isinstance(one, type):
            if isinstance(value, one) and not isinstance(value, type):
                return True
        elif isinstance(value, Sequence) and all(isinstance(v, _class(one)) for v in value):
            return True
    return False


def _refusal(name: str, value: Any, alternatives: tuple[Any, ...]) -> str:
    classes = {_class(one).__name__ for one in alternatives}
    wanted = " or ".join(
        EXAMPLES[_class(one).__name__] if isinstance(one, type) else "several of them"
        for one in alternatives
    )
    remedy = ""
    if isinstance(value, type):
        came, remedy = f"the class {value.__name__}", f" Create one: {value.__name__}(...)."
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "numpy array" if type(value).__name__ == "ndarray" else type(value).__name__
        came = f"a {kind} {list(value.shape)} {value.dtype}"
    else:
        came = f"{repr(value)[:60]} ({type(value).__name__})"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if "Kernel" in classes and number:
        remedy = f" With a length scale: Gaussian({value})."
    elif "Generator" in classes and number:
        remedy = f" From a seed: torch.Generator().manual_seed({value})."
    elif "Tensor" in classes and not isinstance(value, type | NoneType):
        remedy = f" Convert it: torch.as_tensor({name})."
    return f"{name} is {came}; wanted {wanted}.{remedy}"


def draw_device(generator: torch.Generator | None, default: torch.device) -> torch.device:
    """Return the device on which random numbers are drawn: that of the generator; without one, `default`.

    Draws are moved to the tensors afterwards, so that a generator on the CPU repeats itself on every device.
    """
    return default if generator is None else generator.device


def widened(t: Tensor) -> Tensor:
    """The tensor in float32 at least: half precision has no distances, and squares and sums soon leave it."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


@contextlib.contextmanager
def capturable() -> Iterator[None]:
    """Read no values inside, as during the capture of a CUDA graph, so that a warm-up runs what will be recorded.

    Checks of values are skipped, and sums whose backend depends on values use the one that is always accurate. Applies
    to the current thread or task.
    """
    token = _capturable.set(True)
    try:
        yield
    finally:
        _capturable.reset(token)


def values_available(*tensors: Tensor | None) -> bool:
    """Return True if the values of these tensors can be read.

    They cannot while torch compiles or maps a function, captures a CUDA graph, or on the meta device. What a check of
    values would have refused then gives NaN.
    """
    if torch.compiler.is_compiling() or _capturable.get():
        return False
    given = [t for t in tensors if t is not None]
    if any(t.is_meta or _is_vmapped(t) for t in given):
        return False
    return not (any(t.is_cuda for t in given) and torch.cuda.is_current_stream_capturing())


def checkable(*tensors: Tensor | None) -> bool:
    """Return True if the values of these tensors can be read without waiting: checks of values are made only there."""
    immediate = all(t is None or t.device.type in IMMEDIATE for t in tensors)
    return immediate and values_available(*tensors)


def _is_vmapped(t: Tensor) -> bool:
    """Return True for a tensor that stands for a batch under `torch.func.vmap`, below whatever other transforms."""
    functorch = torch._C._functorch  # type: ignore[attr-defined]  # there is no public way to ask
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_batchedtensor(t):
            return True
        t = functorch.get_unwrapped(t)
    return False
