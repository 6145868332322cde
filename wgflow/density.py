r"""Kernel density estimates of weighted samples: density, score, Hessian, responsibilities and draws.

The score of every kernel is exact: ∇log p_h = (f_s / f_k) (barycentre_s - x), with f_k and f_s the sums under the
kernel and its gradient kernel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import torch
from torch import Tensor, nn

from wgflow.arguments import checked, draw_device
from wgflow.kernels import Gaussian, Kernel, LengthScaleKernel, Scaled
from wgflow.reductions import (
    check_clouds,
    check_no_nan,
    kernel_shift_f64,
    log_total,
    require_unsharded,
)
from wgflow.reductions.dense import factor_weights

__all__ = ["KDE"]


@checked
class KDE(nn.Module):
    r"""Kernel density estimate p_h(x) = Σ_j w_j k(x, y_j) / (Σ_j w_j ∫ k).

    Samples, weights and a tensor length scale are buffers: they move with `.to()` and are part of `state_dict()`. A
    length scale that is an `nn.Parameter` is a parameter of the module. Gradients flow to the points, samples, weights
    and a tensor length scale.

    Args:
        samples: y, [..., M, D].
        kernel: its length scale is in the units of the samples; see `wgflow.bandwidths` for rules.
        weights: w, [..., M], not negative, or None for equal ones. Only their ratios matter; gradients exist at 0 too.

    Raises:
        ValueError: On bad samples or weights.
    """

    samples: Tensor
    weights: Tensor | None

    def __init__(self, samples: Tensor, kernel: Kernel, weights: Tensor | None = None):
        super().__init__()
        self.register_buffer("samples", samples)
        self.register_buffer("weights", weights)
        self._kernel = kernel
        scale = kernel.length_scale if isinstance(kernel, LengthScaleKernel) else None
        if isinstance(scale, nn.Parameter):
            self.register_parameter("length_scale", scale)
        elif isinstance(scale, Tensor):
            self.register_buffer("length_scale", scale)
        check_clouds(samples, samples, None, False, ("samples", "samples"), weights=weights)
        check_no_nan(samples - samples, "samples")  # infinity becomes NaN too

    @property
    def kernel(self) -> Kernel:
        """The kernel, with its length scale on the device of the module."""
        if not hasattr(self, "length_scale"):
            return self._kernel
        return dataclasses.replace(self._kernel, length_scale=self.length_scale)  # type: ignore[type-var]

    def extra_repr(self) -> str:
        weights = "" if self.weights is None else f", weights={list(self.weights.shape)}"
        return f"samples={list(self.samples.shape)}, kernel={self.kernel!r}{weights}"

    def log_density(self, x: Tensor) -> Tensor:
        r"""log p_h(x) = log_mass - log Σ w + log_norm(D): [..., N, D] -> [..., N].

        Raises:
            ValueError: If the kernel has infinite mass in this dimension.
        """
        kernel, w = self.kernel, self.weights
        norm = kernel.log_norm(x.shape[-1])
        if norm is None:
            raise ValueError(
                f"{kernel!r} has no finite mass in dimension {x.shape[-1]}, so it defines no density; "
                "its mean shift and its score still exist, or use Gaussian(length_scale)."
            )
        log_mass, _ = kernel_shift_f64(x, self.samples, kernel=kernel, weights=w)
        return (log_mass - log_total(self.samples, w) + norm).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        r"""∇log p_h(x), units 1/length: [..., N, D] -> [..., N, D]. Gaussian: mean shift / h² (DFP Eq. 7).

        Differentiable if the gradient kernel has a gradient kernel, as all have.
        """
        return kde_score(x, self.samples, self.kernel, self.weights).to(x.dtype)

    def hessian(self, x: Tensor) -> Tensor:
        r"""∇²log p_h(x), units 1/length²: [..., N, D] -> [..., N, D, D]. Gaussian: (Cov_W(x) - h² I) / h⁴.

        D backward passes through the score, memory linear in N + M. Returned without a graph.
        """
        # Outside of inference mode, whose tensors have no derivatives.
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            score = self._detached().score(at)
            columns = [
                torch.autograd.grad(score[..., d].sum(), at, retain_graph=True)[0]
                for d in range(x.shape[-1])
            ]
        return torch.stack(columns, -1)

    def debiased(self) -> KDE:
        r"""The score-debiased estimate: the KDE of samples moved by half a mean-shift step, y + (h²/2) ∇log p_h(y).

        Its bias is O(h⁴) where that of the estimate itself is O(h²) (Epstein et al. 2025, proved for the score of the
        true density): for samples of N(0, σ²) the variance is 5h⁴/4σ² too large instead of h². Wider kernels are then
        best, h of the order M^(-1/(D+8)). Kernel and weights are kept; gradients flow as in the estimate.

        Raises:
            ValueError: If the kernel is not Gaussian: the expansion of the bias is that of its heat flow.
        """
        kernel, y = self.kernel, self.samples
        if not isinstance(kernel, Gaussian):
            raise ValueError(
                f"the kernel is {kernel!r}; half a mean-shift step removes the bias of a Gaussian only: "
                "use Gaussian(length_scale)."
            )
        _, shift = kernel_shift_f64(y, y, kernel=kernel, weights=self.weights)
        return KDE((y + 0.5 * shift).to(y.dtype), kernel, self.weights)

    def _detached(self) -> KDE:
        """A copy without graphs, whose tensors can be differentiated through even if made in inference mode."""
        kernel = self.kernel
        if hasattr(self, "length_scale"):
            scale = cast(Tensor, self.length_scale).detach().clone()
            kernel = dataclasses.replace(kernel, length_scale=scale)  # type: ignore[type-var]
        weights = None if self.weights is None else self.weights.detach().clone()
        return KDE(self.samples.detach().clone(), kernel, weights)

    def responsibilities(self, x: Tensor) -> Tensor:
        """W_ij = w_j k(x_i, y_j) / Σ_j w_j k(x_i, y_j): [..., N, D] -> [..., N, M], dense.

        A row is 0 where a compact kernel reaches no sample.
        """
        return self._responsibilities(x).to(x.dtype)

    def _responsibilities(self, x: Tensor) -> Tensor:
        """The responsibilities in float64."""
        require_unsharded("responsibilities")
        check_clouds(x, self.samples, None, False, ("x", "samples"), weights=self.weights)
        points, samples = x.double(), self.samples.double()
        logits, present = (
            self.kernel.log_pairs(points, samples),
            torch.ones_like(points[..., :1, :1]),
        )
        if self.weights is not None:
            log_weights, unit = factor_weights(None, self.weights)
            logits, present = logits + log_weights.unsqueeze(-2), unit.unsqueeze(-2)
        top = logits.detach().masked_fill(present == 0, -math.inf).amax(-1, keepdim=True)
        empty = top == -math.inf
        # A sample of weight 0 may be far nearer than all others: its derivative is large, and is kept finite.
        highest = 0.9 * math.log(torch.finfo(logits.dtype).max)
        e = present * (logits - top.masked_fill(empty, 0.0)).clamp_max(highest).exp()
        e = e.masked_fill(empty, 0.0)
        return e / e.sum(-1, keepdim=True).masked_fill(empty, 1.0)

    def effective_sample_size(self, x: Tensor) -> Tensor:
        """1 / Σ_j W_ij², the effective number of samples in the estimate at x, 1 to M: [..., N, D] -> [..., N], dense.

        0 where a compact kernel reaches no sample.
        """
        W = self._responsibilities(x)
        return (W.sum(-1) / W.square().sum(-1).clamp_min(torch.finfo(W.dtype).tiny)).to(x.dtype)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws from p_h, without a graph: [..., n, D].

        The batch is that of samples, weights and length scale together, as for the density.

        Raises:
            ValueError: If the kernel cannot be sampled, or n is negative.
        """
        if n < 0:
            raise ValueError(f"n = {n}; wanted a number of draws, at least 0.")
        require_unsharded("a sample of the density")
        y, (m, dim) = self.samples.detach(), self.samples.shape[-2:]
        w = y.new_ones(m) if self.weights is None else self.weights.detach()
        scale = self.kernel.standardize()[1]
        lengths = () if scale is None else scale.shape[:-2]
        batch = torch.broadcast_shapes(y.shape[:-2], w.shape[:-1], lengths)
        pick = draw_indices(w.expand(*batch, m).reshape(-1, m), n, generator).view(*batch, n, 1)
        centres = y.expand(*batch, m, dim).gather(-2, pick.expand(*batch, n, dim))
        return centres + self.kernel.noise(centres, generator)


def kde_score(x: Tensor, y: Tensor, kernel: Kernel, weights: Tensor | None) -> Tensor:
    """The score of `KDE(y, kernel, weights)` at x, [..., N, D], in float64."""
    plain, _ = kernel.standardize()
    log_mass, shift = kernel_shift_f64(x, y, kernel=kernel, weights=weights)
    if isinstance(plain, Gaussian):
        # The ratio of the sums is 1/h² exactly. From two log masses it loses digits far away, and costs a sum.
        scaled = plain.gradient_kernel
        assert isinstance(scaled, Scaled)
        return math.exp(scaled.log_scale) * kernel.covector(shift)
    log_slope, shift = kernel_shift_f64(x, y, kernel=kernel.gradient_kernel, weights=weights)
    # Outside the support of a compact kernel both sums are 0: no density, no direction.
    ratio = (log_slope - log_mass.clamp_min(torch.finfo(log_mass.dtype).min)).exp()
    return ratio.unsqueeze(-1) * kernel.covector(shift)


def draw_indices(weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """[B, n] independent draws of column numbers with shares `weights` / Σ weights, [B, M], by inversion in float64.

    torch.multinomial adds weights in their dtype, so that float32 shares are wrong from a million samples on, and
    refuses more than 2^24.
    """
    w = weights.double()
    cumulative = (w / w.amax(-1, keepdim=True)).cumsum_(-1)
    device = draw_device(generator, w.device)
    u = torch.rand(len(w), n, dtype=w.dtype, device=device, generator=generator).to(w)
    # The product may round up to the sum itself, which no sample reaches.
    total = cumulative[:, -1:]
    u = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, u, right=True)
