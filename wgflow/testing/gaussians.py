r"""Closed forms between Gaussians, as exact references for tests.

A Gaussian is (mean [D], covariance [D, D]), the covariance symmetric positive definite. Nothing is batched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.distances import safe_root
from wgflow.kernels import positive

__all__ = [
    "drift",
    "energy_distance_1d",
    "entropic_transport",
    "kl",
    "mmd2",
    "moment_flow",
    "sinkhorn_divergence",
    "variance_clock",
    "w2",
]


def _smoothed_gain(cov: Tensor, h: float) -> Tensor:
    """A = h² (cov + h² I)^-1, so that the mean shift towards N(m, cov) is -A (x - m)."""
    positive("h", h)
    if cov.dim() != 2 or cov.shape[0] != cov.shape[1]:
        raise ValueError(
            f"a covariance is {list(cov.shape)}; wanted [D, D]. In one dimension torch.tensor([[v]])."
        )
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    return h**2 * torch.linalg.inv(cov + h**2 * eye)


def drift(x: Tensor, p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], *, h: float) -> Tensor:
    """Population drifting field of `Gaussian(h)`: V(x) = -A_p (x - m_p) + A_q (x - m_q), [..., D], a length."""
    (m_p, P), (m_q, S) = p, q
    return -(x - m_p) @ _smoothed_gain(P, h) + (x - m_q) @ _smoothed_gain(S, h)


def moment_flow(
    p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], *, h: float
) -> tuple[Tensor, Tensor]:
    """(dm/dt, dS/dt) of q = N(m, S) carried by `drift`: -A_p (m - m_p) and (A_q - A_p) S + S (A_q - A_p)ᵀ."""
    (m_p, P), (m, S) = p, q
    gain = _smoothed_gain(S, h) - _smoothed_gain(P, h)
    return -_smoothed_gain(P, h) @ (m - m_p), gain @ S + S @ gain.mT


def variance_clock(s: float, target: float, *, h: float) -> float:
    r"""Φ with Φ(s_t) = Φ(s_0) + 2 h² t / (P + h²) for the variance s_t of the 1-D flow with equal means.

    Φ(s) = (h²/P) ln s - ((P + h²)/P) ln|P - s|, P the target variance, s not P.
    """
    if not (s > 0 and target > 0 and s != target):
        raise ValueError(
            f"s = {s!r}, target = {target!r}; wanted two positive variances that differ."
        )
    return (h**2 / target) * math.log(s) - ((target + h**2) / target) * math.log(abs(target - s))


def kl(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """KL(q || p), a scalar in nats."""
    (m_q, S), (m_p, P) = q, p
    gap = m_p - m_q
    inverse = torch.linalg.inv(P)
    return 0.5 * (
        (inverse @ S).trace() + gap @ inverse @ gap - len(gap) + torch.logdet(P) - torch.logdet(S)
    )


def w2(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
    """Wasserstein-2 distance, a length: W2² = |m - m'|² + tr(P + S - 2 (P^½ S P^½)^½)."""
    (m_p, P), (m_q, S) = p, q
    root = _sqrtm(P)
    squared = (m_p - m_q).square().sum() + (P + S - 2 * _sqrtm(root @ S @ root)).trace()
    return safe_root(squared.clamp_min(0))


def mmd2(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], *, h: float) -> Tensor:
    """Squared MMD with the kernel exp(-|x - y|² / 2h²), a dimensionless scalar."""

    def overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        gap, eye = a[0] - b[0], torch.eye(len(a[0]), dtype=a[0].dtype, device=a[0].device)
        cov = eye + (a[1] + b[1]) / h**2
        return (-0.5 * gap @ torch.linalg.solve(cov, gap) / h**2).exp() / torch.linalg.det(
            cov
        ).sqrt()

    return overlap(p, p) + overlap(q, q) - 2 * overlap(p, q)


def energy_distance_1d(p: tuple[float, float], q: tuple[float, float]) -> float:
    """2 E|x-y| - E|x-x'| - E|y-y'|, a length, between N(mean, variance) on the line: (mean, variance) pairs."""

    def mean_abs(gap: float, variance: float) -> float:
        s = math.sqrt(variance)
        return s * math.sqrt(2 / math.pi) * math.exp(-(gap**2) / (2 * variance)) + gap * math.erf(
            gap / (s * math.sqrt(2))
        )

    (m_p, P), (m_q, S) = p, q
    return 2 * mean_abs(m_p - m_q, P + S) - mean_abs(0, 2 * P) - mean_abs(0, 2 * S)


def entropic_transport(
    p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], *, sigma2: float
) -> Tensor:
    r"""min_π E|x-y|² + 2 σ² KL(π || p ⊗ q), length² (Janati et al. 2020).

    |m-m'|² + tr(P + S - D) + d σ² (1 - log 2σ²) + σ² log det(D + σ² I), D = (4 P^½ S P^½ + σ⁴ I)^½.
    """
    (m_p, P), (m_q, S) = p, q
    dim, eye = len(m_p), torch.eye(len(m_p), dtype=m_p.dtype, device=m_p.device)
    root = _sqrtm(P)
    D = _sqrtm(4 * root @ S @ root + sigma2**2 * eye)
    entropy = dim * sigma2 * (1 - math.log(2 * sigma2)) + sigma2 * torch.logdet(D + sigma2 * eye)
    return (m_p - m_q).square().sum() + (P + S - D).trace() + entropy


def sinkhorn_divergence(
    p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], *, sigma2: float
) -> Tensor:
    """`entropic_transport` debiased by the mean of its two self terms, so that it vanishes at p = q; length²."""
    cost = entropic_transport(p, q, sigma2=sigma2)
    return cost - 0.5 * (
        entropic_transport(p, p, sigma2=sigma2) + entropic_transport(q, q, sigma2=sigma2)
    )


def _sqrtm(matrix: Tensor) -> Tensor:
    """The symmetric positive square root."""
    return _Root.apply(matrix)  # type: ignore[return-value]


class _Root(torch.autograd.Function):
    """R = A^½. Its derivative solves R dR + dR R = dA; that of `eigh` is infinite where eigenvalues coincide."""

    @staticmethod
    def forward(ctx, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (root,) = ctx.saved_tensors
        eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
        system = torch.kron(root, eye) + torch.kron(eye, root)
        return torch.linalg.solve(system, grad.flatten()).view_as(root)
