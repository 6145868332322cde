r"""The door of the waist: `kernel_shift` returns (log Σ_j w_j k_ij, Σ_j W_ij (y_j - x_i)), W normalised over j.

It checks, chooses a backend and rounds once; what a backend does is in its own file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.kernels import Kernel
from wgflow.stretched import Stretched, unstretch
from wgflow.sums import sharding
from wgflow.sums.checks import check_clouds, refuse_nan
from wgflow.sums.choice import choose
from wgflow.sums.dense import DenseAverage, dense
from wgflow.sums.linear import LinearAverage


@checked
def kernel_average(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""The reduction of the library: log_mass = log Σ_j w_j k(x, y_j) and barycentre = Σ_j w_j k y_j / Σ_j w_j k.

    Where only barycentre - x is wanted, `kernel_shift` keeps the digits that this sum rounds away.

    Args:
        x: [..., N, D] points; y: [..., M, D] samples. Leading dimensions broadcast. Same dtype and device.
        kernel: its lengths are in the units of `x`.
        log_weights: [..., M] or None for w = 1; -inf removes a sample. Not normalised here.
        skip_self: leave y[i] out for x[i]. Needs N = M; only meaningful when y *is* x.
        backend: "dense" (one matrix of pairs), "streaming" (blocks of pairs), "attention" (matrix products,
            Gaussian only), "keops" (pykeops), all but the first with memory linear in N + M; "auto" takes
            the fastest that is accurate enough, and `explain_backend` says which. "distributed": x and y are
            this process's shards, see `wgflow.distributed`. See docs/backends.md.
    Returns: log_mass [..., N], barycentre [..., N, D], in the dtype of x. Few pairs and float64 input are
        summed in float64; float32 is used where it changes weights by less than 2e-4, so a field by less than
        1e-3 of the distances it averages (a step much shorter than these has fewer digits). Where no sample has
        weight (compact kernels), log_mass is -inf and the barycentre is x itself.
    Gradients: flow to x, y and log_weights; a second derivative exists for "dense", and for "auto" up to 4
        million pairs.
    Raises: ValueError on shapes, dtypes, devices, empty sets, weights that are all zero, kernels that the backend
        does not have, NaN (checked on the CPU only: on a GPU the check would make every call wait);
        RuntimeError where "keops" has no pykeops or compiler.
    """
    log_mass, shift = kernel_shift(
        x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self, backend=backend
    )
    return log_mass, x + shift


@checked
def kernel_shift(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""(log_mass, barycentre - x): `kernel_average` read from where one stands, exact also when the step is tiny.

    Arguments, gradients and errors as `kernel_average`. Returns: log_mass [..., N], shift [..., N, D], a
    length.
    """
    log_mass, shift = double_shift(
        x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self, backend=backend
    )
    return (
        (log_mass, shift) if x.dtype == torch.float64 else (log_mass.to(x.dtype), shift.to(x.dtype))
    )


def double_shift(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""`kernel_shift` before it is rounded to the dtype of x: fields subtract and exponentiate masses, then round once.

    The weights may already be float64 whatever x is. Arguments, gradients and errors otherwise as `kernel_average`.
    """
    shards = sharding.behind(backend)
    if shards is not None:
        # Before any check: an error here would be one on this process alone, and the others would wait.
        return shards.double_shift(x, y, log_weights, kernel, skip_self)
    check_clouds(x, y, log_weights, skip_self)
    if isinstance(kernel, Stretched):
        # Divided here, multiplied back here: no backend, tile or gradient knows of lengths. float64 from here on.
        plain, u, v, lengths = unstretch(kernel, x, y)
        log_w = None if log_weights is None else log_weights.double()
        log_mass, shift = double_shift(
            u, v, kernel=plain, log_weights=log_w, skip_self=skip_self, backend=backend
        )
        return log_mass, shift * lengths
    choice = choose(x, y, kernel, log_weights, backend)
    if choice.backend == "dense":
        log_mass, shift = _dense(x, y, log_weights, kernel, skip_self)
    else:
        log_mass, shift = LinearAverage.apply(x, y, log_weights, kernel, skip_self, choice)  # type: ignore[misc]
    refuse_nan(log_mass, "x, y or log_weights")
    refuse_nan(shift, "x, y or log_weights")
    return log_mass, shift


def _dense(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    # All of it in float64: at small sizes the cast costs less than one launch, and it is what keeps small h,
    # large offsets and far points right in float32. The losing side: float32 sums, off by .1 h at h = 1e-3.
    if x.dtype == torch.float64:
        origin = y.detach().mean(
            -2, keepdim=True
        )  # float32 input has digits to spare without centring
        x, y = x - origin, y - origin
    else:
        x, y = x.double(), y.double()
        log_weights = None if log_weights is None else log_weights.double()
    tensors = (x, y) if log_weights is None else (x, y, log_weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return DenseAverage.apply(x, y, log_weights, kernel, skip_self)  # type: ignore[misc]
    return dense(x, y, log_weights, kernel, skip_self)
