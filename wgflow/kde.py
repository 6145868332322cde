r"""Kernel density estimates of weighted samples: every quantity read off the one reduction.

The score of *any* kernel is exact: ∇log p_h = (slope mass / mass) (slope barycentre - x), two sums and no
approximation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.kernels import Kernel, Scaled
from wgflow.sums import (
    check_clouds,
    double_shift,
    kernel_shift,
    log_of_weights,
    log_total,
    only_whole,
    refuse_nan,
)

__all__ = ["KDE"]


@checked
@dataclass(frozen=True, eq=False)
class KDE:
    r"""p_h(x) = Σ_j w_j k(x, y_j) / (Σ_j w_j ∫ k): a density estimate that can be read, differentiated and sampled.

    Args: samples: [..., M, D]; kernel: its lengths are in the units of the samples; weights: [..., M], w >=
        0, or None.
    Raises: ValueError on bad samples or weights, here rather than at the first use.
    """

    samples: Tensor
    kernel: Kernel
    weights: Tensor | None = None

    def __post_init__(self):
        check_clouds(self.samples, self.samples, self._log_weights, False, ("samples", "samples"))
        refuse_nan(self.samples - self.samples, "samples")  # infinity becomes NaN too

    @property
    def _log_weights(self) -> Tensor | None:
        return log_of_weights(self.weights)

    def log_density(self, x: Tensor) -> Tensor:
        r"""log p_h(x) = log_mass - log Σ w + log_norm(D). x: [..., N, D] -> [..., N]. Differentiable in all tensors.

        Raises: ValueError when the kernel has infinite mass in this dimension.
        """
        norm = self.kernel.log_norm(x.shape[-1])
        if norm is None:
            raise ValueError(
                f"{self.kernel!r} has no finite mass in dimension {x.shape[-1]}, so no density is made of it; "
                "its mean shift and its score still exist, or use Gaussian(h)."
            )
        w = self._log_weights
        log_mass, _ = kernel_shift(x, self.samples, kernel=self.kernel, log_weights=w)
        return (log_mass - log_total(self.samples, w) + norm).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        r"""∇log p_h(x), units 1/length; Gaussian: mean shift / h² (DFP Eq. 7). x: [..., N, D] -> [..., N, D].

        Differentiable in all tensors where the kernel's slope has a slope (Laplace: it jumps at the samples).
        """
        w = self._log_weights
        slope = self.kernel.slope
        if isinstance(slope, Scaled) and slope.kernel == self.kernel:
            # Gaussian: the ratio is 1/h² exactly. From two log masses it loses digits far away, and costs a sum more.
            _, shift = double_shift(x, self.samples, kernel=self.kernel, log_weights=w)
            return (math.exp(slope.log_scale) * shift).to(x.dtype)
        log_mass, _ = double_shift(x, self.samples, kernel=self.kernel, log_weights=w)
        log_slope, shift = double_shift(x, self.samples, kernel=self.kernel.slope, log_weights=w)
        # Outside a compact kernel's support both masses are 0: no density, no direction.
        ratio = (log_slope - log_mass.clamp_min(torch.finfo(log_mass.dtype).min)).exp()
        return (ratio.unsqueeze(-1) * self.kernel.covector(shift)).to(x.dtype)

    def hessian(self, x: Tensor) -> Tensor:
        r"""∇²log p_h(x), units 1/length²; Gaussian: (Cov_W(x) - h² I) / h⁴. x: [..., N, D] -> [..., N, D, D].

        D backward passes through the score, memory linear in N + M. Returned without a graph.
        """
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            score = self.score(at)
            columns = [
                torch.autograd.grad(score[..., d].sum(), at, retain_graph=True)[0]
                for d in range(x.shape[-1])
            ]
        return torch.stack(columns, -1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """W_ij = w_j k(x_i, y_j) / Σ: how much each sample speaks for each point. x: [..., N, D] -> [..., N,
        M], dense. All 0 where a compact kernel reaches no sample.
        """
        only_whole("responsibilities")
        check_clouds(x, self.samples, None, False, ("x", "samples"))
        logits, w = self.kernel.log_pairs(x, self.samples), self._log_weights
        logits = logits if w is None else logits + w.unsqueeze(-2)
        nowhere = logits.amax(-1, keepdim=True) == -math.inf
        return logits.masked_fill(nowhere, 0.0).softmax(-1).masked_fill(nowhere, 0.0)

    def effective_sample_size(self, x: Tensor) -> Tensor:
        """1 / Σ_j W_ij²: the number of samples the estimate at x rests on, 1 to M. x: [..., N, D] -> [...,
        N], dense. 0 where a compact kernel reaches none.
        """
        W = self.responsibilities(x)
        return W.sum(-1) / W.square().sum(-1).clamp_min(torch.finfo(W.dtype).tiny)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws from p_h: a sample by weight, then the kernel's own noise. Returns [..., n,
        D], no graph.

        Raises: ValueError when the kernel is no density one can draw from.
        """
        y = self.samples.detach()
        batch, (m, dim) = y.shape[:-2], y.shape[-2:]
        w = (
            y.new_ones(y.shape[:-1])
            if self.weights is None
            else self.weights.detach().expand(y.shape[:-1])
        )
        pick = torch.multinomial(w.reshape(-1, m), n, replacement=True, generator=generator).view(
            *batch, n, 1
        )
        centres = y.gather(-2, pick.expand(*batch, n, dim))
        return centres + self.kernel.noise(centres, generator)
