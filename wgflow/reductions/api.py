r"""Public kernel sums: validate, rescale by tensor length scales, select a backend, round once.

`kernel_shift` returns (log Σ_j w_j k_ij, Σ_j W_ij (y_j - x_i)), with W the weights normalised over j.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.distances import may_differentiate
from wgflow.kernels import Kernel, multiply, rescale
from wgflow.reductions import sharding
from wgflow.reductions.autograd import BlockedSum, DenseSum
from wgflow.reductions.dense import centred, combine_weights, dense_sum, weighted_sums
from wgflow.reductions.dispatch import choose, explain_backend
from wgflow.reductions.validation import check_clouds, check_no_nan


@checked
def kernel_average(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    values: Tensor | None = None,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Kernel-weighted mass and mean: log_mass = log Σ_j w_j k(x, y_j), mean = Σ_j w_j k z_j / Σ_j w_j k.

    The z_j are the samples y_j themselves (the barycentre, as below) or their `values`: then it is the regression of
    Nadaraya 1964 and Watson 1964. For barycentre - x use `kernel_shift`: it keeps digits that this sum rounds away.

    Args:
        x: [..., N, D] points.
        y: [..., M, D] samples, of the dtype and on the device of x. Leading dimensions broadcast.
        kernel: its length scale is in the units of x.
        values: z, [..., M, C], labels of the samples. The mean is then [..., N, C], and 0 where no sample has weight;
            all pairs are held in memory, so `backend` is "auto" or "dense".
        log_weights: [..., M], not normalised here, or None for w = 1; -inf removes a sample.
        skip_self: leave y[i] out for x[i]. Needs N = M; only meaningful when y *is* x.
        backend: "dense" (one matrix of pairs), "blocked" (blocks of pairs), "gemm" (matrix products, Gaussian only),
            "keops" (pykeops), all but the first with memory linear in N + M. "auto" takes the fastest that is accurate
            enough, see `explain_backend`. "distributed": x and y are the shards of this process, see
            `wgflow.distributed`. See docs/backends.md.

    Returns:
        log_mass [..., N] and barycentre [..., N, D] in the dtype of x. Few pairs, float64 input and kernels with a
        tensor as length scale are summed in float64; float32 is used where it changes weights by less than 2e-4, and
        each row's barycentre - x by less than 1e-3 of the root mean square of the distances it averages (5e-3 in a
        row that one sample dominates, see docs/backends.md). Where no sample has weight (compact kernels), log_mass is
        -inf and the barycentre is x itself.

    Gradients flow to x, y, log_weights and a tensor length scale. A second derivative exists for "dense", and for
    "auto" up to 4 million pairs.

    Raises:
        ValueError: on shapes, dtypes, devices, empty sets, weights that are all zero, a kernel that the backend does
            not have, NaN (checked on the CPU only: on a GPU every call would wait).
        RuntimeError: "keops" without pykeops or a compiler.
    """
    if values is not None:
        return _regression(x, y, values, kernel, log_weights, skip_self, backend)
    log_mass, shift = kernel_shift(
        x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self, backend=backend
    )
    return log_mass, x + shift


def _regression(x, y, values, kernel, log_weights, skip_self, backend) -> tuple[Tensor, Tensor]:
    """(log_mass, Σ_j W_ij z_j), by autograd."""
    sharding.require_unsharded("kernel_average with values")
    check_clouds(x, y, log_weights, skip_self)
    if backend not in ("auto", "dense"):
        raise ValueError(f'backend = {backend!r}; with values wanted "auto" or "dense".')
    if (
        values.dim() < 2
        or values.shape[-2] != y.shape[-2]
        or values.dtype != y.dtype
        or values.device != y.device
    ):
        raise ValueError(
            f"values are {list(values.shape)} {values.dtype} on {values.device}; wanted [..., {y.shape[-2]}, C] "
            f"{y.dtype} on {y.device}, one row for each sample y. For one number per sample, values[..., None]."
        )
    logits = kernel.log_pairs(x.double(), y.double())
    if log_weights is not None:
        logits = logits + log_weights.double().unsqueeze(-2)
    if skip_self:
        own = torch.eye(y.shape[-2], dtype=torch.bool, device=y.device)
        logits = logits.masked_fill(own, -math.inf)
    empty = (logits.detach() == -math.inf).all(-1, keepdim=True)  # out of reach of a compact kernel
    logits = logits.masked_fill(empty, 0.0)
    log_mass = logits.logsumexp(-1).masked_fill(empty.squeeze(-1), -math.inf)
    W = logits.softmax(-1).masked_fill(empty, 0.0)
    mean = W @ values.double()
    check_no_nan(mean - mean.detach(), "x, y, values or the weights")  # infinity becomes NaN too
    return log_mass.to(x.dtype), mean.to(x.dtype)


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
    r"""Kernel-weighted mass and mean displacement: (log_mass, barycentre - x), accurate also for tiny steps.

    Arguments, gradients and errors as `kernel_average`. Returns: log_mass [..., N], shift [..., N, D], a length.
    """
    log_mass, shift = kernel_shift_f64(
        x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self, backend=backend
    )
    return log_mass.to(x.dtype), shift.to(x.dtype)


def kernel_shift_f64(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    weights: Tensor | None = None,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""`kernel_shift` in float64, whatever the dtype of x: fields subtract and exponentiate, then round once.

    Samples count w_j e^(l_j), with `weights` w [..., M], w >= 0, and `log_weights` l [..., M]; both may be float64.
    Derivatives with respect to w are right at w = 0 too, those of its logarithm would be 0/0. Arguments, gradients and
    errors otherwise as `kernel_average`.
    """
    shards = sharding.shards_of(backend)
    if shards is not None:
        # Before any check: an error here would be one on this process alone, and the others would wait.
        return shards.kernel_shift_f64(x, y, log_weights, weights, kernel, skip_self)
    check_clouds(x, y, log_weights, skip_self, weights=weights)
    plain, scale = kernel.standardize()
    if scale is not None:
        # Divide here and multiply below: no backend knows of tensor length scales, and autograd does the rest.
        scale, x, y = rescale(scale, x, y)
        log_weights = None if log_weights is None else log_weights.double()
    total = combine_weights(log_weights, weights)
    choice = choose(x, y, plain, total, backend)
    if choice.backend == "dense":
        log_mass, shift = _dense(x, y, log_weights, weights, total, plain, skip_self)
    else:
        log_mass, shift, *_ = BlockedSum.apply(  # type: ignore[misc]
            x, y, log_weights, weights, plain, skip_self, choice
        )
    check_no_nan(shift, "x, y or the weights")  # wherever log_mass is NaN, so is the shift
    return log_mass, shift if scale is None else multiply(shift, scale)


def _dense(x, y, log_weights, weights, total, kernel, skip_self) -> tuple[Tensor, Tensor]:
    # All of it in float64: at small sizes the cast costs less than one launch, and it is what keeps small h,
    # large offsets and far points right in float32. The losing side: float32 sums, off by .1 h at h = 1e-3.
    x, y = centred(x, y, total)
    tensors = [t for t in (x, y, log_weights, weights) if t is not None]
    if may_differentiate(*tensors):
        return DenseSum.apply(x, y, log_weights, weights, kernel, skip_self)  # type: ignore[misc]
    return dense_sum(x, y, total, kernel, skip_self)


def responsibility_shift_f64(
    x: Tensor, y: Tensor, *, kernel: Kernel, weights: Tensor | None = None
) -> Tensor:
    r"""Σ_j w_j R_ij (y_j - x_i) in float64, R_ij = k_ij / Σ_l k_lj: every sample is divided among the points.

    A sample out of reach of all points (compact kernels) has no pull. Arguments, gradients and errors as
    `kernel_average`. Returns: [..., N, D], a length.
    """
    whole = sharding.current() is None
    if whole and explain_backend(y, x, kernel=kernel).backend == "dense":
        # One matrix of pairs, in a third of the time of two sums.
        check_clouds(x, y, None, False, weights=weights)
        x, y = centred(x, y, combine_weights(None, weights))
        logits = kernel.log_pairs(x, y)
        beyond = (logits.detach() == -math.inf).all(-2, keepdim=True)
        R = logits.masked_fill(beyond, 0.0).softmax(-2).masked_fill(beyond, 0.0)
        R = R if weights is None else R * weights.unsqueeze(-2)
        shift = weighted_sums(R, y) - R.sum(-1, keepdim=True) * x
        check_no_nan(shift, "x, y or the weights")
        return shift
    log_mass, _ = kernel_shift_f64(y, x, kernel=kernel)
    log_mass = torch.where(log_mass == -math.inf, 0.0, log_mass)
    log_pull, shift = kernel_shift_f64(x, y, kernel=kernel, weights=weights, log_weights=-log_mass)
    return log_pull.exp().unsqueeze(-1) * shift
