r"""Entropic optimal transport min_π Σ π C + ε KL(π || a ⊗ b) between discrete measures, solved to a tolerance.

The dual potentials f, g maximise <a, f> + <b, g> - ε Σ π + ε, π_ij = a_i b_j exp((f_i + g_j - C_ij) / ε). At a given f
the best g is its soft minimum (Sinkhorn's step), and what remains is concave in f: solved by damped Newton steps while
ε is lowered to its value, since Sinkhorn's steps alone take of the order of max C / ε iterations (Cuturi 2013; Brauer,
Clason, Lorenz and Wirth 2017). Potentials and plan of a measure with itself are symmetric and solved by averaged steps
(Feydy et al. 2019).

The derivative of the cost in C is the plan, whose own derivative follows from the equation that f solves, by the
implicit function theorem: no iteration is recorded. All in float64, one problem [N, M] at a time. `row_plan` is the
plain iteration, for fields: a few batched rounds, which reach no such tolerance.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import values_available
from wgflow.reductions.dense import MAX_EXPONENT

__all__ = ["Between", "Within", "cost", "plan", "row_plan"]

TOLERANCE = 1e-9  # of Σ|π 1 - a|
COARSE = 0.1  # the same, before the regularisation is lowered
RATIO = 3.0  # by which it is lowered
ITERATIONS = 500
RIDGE = 1e-12  # of Newton's system in units of its largest eigenvalue, 1


@dataclass(frozen=True, eq=False)
class _Problem(ABC):
    """Weights and regularisation of a transport problem; its cost matrix C [N, M] is an argument of the methods."""

    a: Tensor  # [N], summing to 1
    b: Tensor  # [M], summing to 1
    eps: float  # in the units of C

    @abstractmethod
    def potential(self, C: Tensor) -> Tensor:
        """The optimal f, [N]."""

    @abstractmethod
    def fixed_point(self, C: Tensor, f: Tensor) -> Tensor:
        """The map whose fixed point is the optimal f; differentiable."""

    @abstractmethod
    def other(self, C: Tensor, f: Tensor) -> Tensor:
        """g, [M], at the optimal f; differentiable."""

    @abstractmethod
    def adjoint(self, C: Tensor, f: Tensor, v: Tensor) -> Tensor:
        """Solve (1 - ∂ fixed_point / ∂f)ᵀ u = v."""

    def log_plan(self, C: Tensor, f: Tensor) -> Tensor:
        g = self.other(C, f)
        sides = (self.a.log() + f / self.eps).unsqueeze(-1) + (self.b.log() + g / self.eps)
        return sides - C / self.eps

    def warn(self, error: float) -> None:
        if not error <= TOLERANCE:
            warnings.warn(
                f"entropic transport stopped at a marginal error of {error:.0e}: the regularisation is too small for "
                "these points. Take a larger blur.",
                RuntimeWarning,
                stacklevel=2,
            )


class Between(_Problem):
    """Transport from one measure to another."""

    @torch.no_grad()
    def potential(self, C: Tensor) -> Tensor:
        if C.shape[0] > C.shape[1]:  # Newton's systems are those of the first measure
            mirror = Between(self.b, self.a, self.eps)
            return mirror.other(C.mT, mirror.potential(C.mT))
        f, eps = torch.zeros_like(self.a), max(float(C.max()), self.eps)
        while eps > self.eps:
            f, _ = Between(self.a, self.b, eps)._ascend(C, f, COARSE)
            eps = max(eps / RATIO, self.eps)
        f, error = self._ascend(C, f, TOLERANCE)
        self.warn(error)
        return f

    def fixed_point(self, C: Tensor, f: Tensor) -> Tensor:
        return _soft_min(C, self.other(C, f), self.b, self.eps)

    def other(self, C: Tensor, f: Tensor) -> Tensor:
        return _soft_min(C.mT, f, self.a, self.eps)

    def adjoint(self, C: Tensor, f: Tensor, v: Tensor) -> Tensor:
        system, root = self._system(self.log_plan(C, f))
        return root * _solve(system + RIDGE * _eye(system), v / root)

    def _ascend(self, C: Tensor, f: Tensor, tolerance: float) -> tuple[Tensor, float]:
        """(f, Σ|π 1 - a|) by Newton steps with a ridge (Levenberg-Marquardt), a step of Sinkhorn after each."""
        ridge, f = RIDGE, self.fixed_point(C, f)
        for _ in range(ITERATIONS):
            log_plan = self.log_plan(C, f)
            residual = self.a - log_plan.exp().sum(-1)
            error = float(residual.abs().sum())
            if error <= tolerance:
                return f, error
            system, root = self._system(log_plan)
            best = self._dual(C, f)
            while True:
                step = self.eps * _solve(system + ridge * _eye(system), residual / root) / root
                slope = float(residual @ step)
                lengths = (
                    t for t in (1.0, 0.5, 0.25) if self._gains(C, f, t * step, best, t * slope)
                )
                length = next(lengths, None)
                if length is not None or ridge > 1e3:
                    break
                ridge *= 100
            if length is not None:
                f = f + length * step
                ridge = max(RIDGE, ridge / 10)
            f = self.fixed_point(C, f)
        return f, error

    def _gains(self, C: Tensor, f: Tensor, step: Tensor, best: float, slope: float) -> bool:
        """Return True if the dual rises by a small part of what its slope promises, up to rounding."""
        return self._dual(C, f + step) >= best + 1e-4 * slope - 1e-14 * abs(best)

    def _dual(self, C: Tensor, f: Tensor) -> float:
        return float(self.a @ f + self.b @ self.other(C, f))

    def _system(self, log_plan: Tensor) -> tuple[Tensor, Tensor]:
        """S = 1 - r^-½ π b^-1 πᵀ r^-½ + r^½ r^½ᵀ and r^½, r = π 1: ε r^-½ S^-1 r^-½ is the inverse Hessian.

        The last term of S fixes the constant that may be added to f and subtracted from g.
        """
        rows = log_plan.logsumexp(-1)
        root = rows.exp().sqrt()
        share = log_plan - 0.5 * rows.unsqueeze(-1) - 0.5 * self.b.log()
        # Entries that S would round away are dropped: products of denormal numbers are slow.
        A = share.masked_fill(~(share > -50), -torch.inf).exp()
        return _eye(A) - A @ A.mT + torch.outer(root, root), root


class Within(_Problem):
    """Transport from a measure to itself, whose two potentials are equal."""

    @torch.no_grad()
    def potential(self, C: Tensor) -> Tensor:
        f, eps = torch.zeros_like(self.a), max(float(C.max()), self.eps)
        while eps > self.eps:
            f = 0.5 * (f + _soft_min(C, f, self.a, eps))
            eps = max(eps / RATIO, self.eps)
        for _ in range(ITERATIONS):
            g = self.fixed_point(C, f)
            error = float(self.a @ ((f - g) / self.eps).expm1().abs())
            f = 0.5 * (f + g)
            if error <= TOLERANCE:
                break
        self.warn(error)
        return f

    def fixed_point(self, C: Tensor, f: Tensor) -> Tensor:
        return _soft_min(C, f, self.a, self.eps)

    def other(self, C: Tensor, f: Tensor) -> Tensor:
        return f

    def adjoint(self, C: Tensor, f: Tensor, v: Tensor) -> Tensor:
        share = (self.log_plan(C, f) - self.a.log().unsqueeze(-1)).masked_fill(
            self.a.unsqueeze(-1) == 0, -torch.inf
        )
        return torch.linalg.solve(_eye(share) + share.exp().mT, v)


class _Cost(torch.autograd.Function):
    """The optimal value. Its derivative in C is the plan, by the envelope theorem."""

    @staticmethod
    def forward(ctx, C: Tensor, problem: _Problem) -> Tensor:
        f = problem.potential(C)
        ctx.problem = problem
        ctx.save_for_backward(C, f)
        return problem.a @ f + problem.b @ problem.other(C, f)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        C, f = ctx.saved_tensors
        return grad * ctx.problem.log_plan(C, _Potential.apply(C, f, ctx.problem)).exp(), None


class _Potential(torch.autograd.Function):
    """The optimal f, with its derivative in C by the implicit function theorem."""

    @staticmethod
    def forward(ctx, C: Tensor, f: Tensor, problem: _Problem) -> Tensor:
        ctx.problem = problem
        ctx.save_for_backward(C, f)
        return f.clone()

    @staticmethod
    def backward(ctx, v):  # type: ignore[override]
        C, f = ctx.saved_tensors
        with torch.enable_grad():
            at = C.detach().requires_grad_()
            u = ctx.problem.adjoint(at.detach(), f, v.detach())
            (dC,) = torch.autograd.grad(ctx.problem.fixed_point(at, f), at, u)
        return _Last.apply(dC, C, v), None, None


class _Last(torch.autograd.Function):
    """A derivative that has none. `once_differentiable` would give `torch.autograd.grad` a zero without a word."""

    @staticmethod
    def forward(ctx, derivative: Tensor, *depends_on: Tensor) -> Tensor:
        return derivative.clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        raise RuntimeError("entropic transport has two derivatives of its cost, one of its plan.")


def cost(C: Tensor, problem: _Problem) -> Tensor:
    """The optimal value, a scalar, twice differentiable in C [N, M] (float64)."""
    return _Cost.apply(C, problem)  # type: ignore[return-value]


def plan(C: Tensor, problem: _Problem) -> Tensor:
    """The optimal plan [N, M], with marginals a and b, once differentiable in C [N, M] (float64)."""
    return problem.log_plan(C, _Potential.apply(C, problem.potential(C), problem)).exp()


def row_plan(
    C: Tensor, b: Tensor | None, *, iterations: int, tolerance: float | None = None
) -> Tensor:
    """The plan after K rounds of Sinkhorn's iteration in the log domain, each row divided by its sum.

    Batched and differentiable through all rounds, for plans that need not be exact; those of `plan` are.

    Args:
        C: [..., N, M] costs over ε.
        b: [..., M] weights that sum to 1, or None for equal ones. Rows have equal weights.
        iterations: K rounds, each an update of the potential of the rows and of that of the columns.
        tolerance: stop where Σ|π 1 - a| is at most this, in each batch element on its own. Waits for a GPU every round.

    Returns:
        [..., N, M]. A RuntimeWarning says where the rounds do not suffice for the tolerance.
    """
    # The batch comes last, [N, M, ...]: sums over short rows are twice as fast then.
    if b is not None:
        C, shares = torch.broadcast_tensors(C, b.unsqueeze(-2))
        b = shares.movedim((-2, -1), (0, 1))
    log_k = -C.movedim((-2, -1), (0, 1)).contiguous()
    # Minus the potentials over ε: f [N, 1, ...] and g [1, M, ...].
    f, g = C.new_full((), -torch.inf), C.new_zeros(())
    for _ in range(iterations):
        before, f = f, _log_mean(log_k - g, 1, b)
        following = _log_mean(log_k - f, 0)
        if tolerance is not None:
            error = _marginal_error(before, f)
            if values_available(error) and bool((error <= tolerance).all()):
                break
            # The result of a batch element does not depend on the others.
            following = torch.where(error <= tolerance, g, following)
        g = following
    before, f = f, _log_mean(log_k - g, 1, b)
    if iterations and tolerance is not None:
        error = _marginal_error(before, f)
        if values_available(error) and not bool((error <= tolerance).all()):
            warnings.warn(
                f"{iterations} iterations left a marginal error of {float(error.detach().max()):.0e}, above the "
                f"tolerance {tolerance}; allow more iterations or take a larger epsilon.",
                RuntimeWarning,
                stacklevel=5,
            )
    shares = (log_k - g - f).clamp_max(MAX_EXPONENT).exp()
    shares = shares / log_k.shape[1] if b is None else shares * b
    return shares.movedim((0, 1), (-2, -1))


def _marginal_error(before: Tensor, f: Tensor) -> Tensor:
    """Σ_i |Σ_j π_ij - 1/N| of the plan of `before` and g, [1, 1, ...]; f is the optimal one at that g."""
    return (f - before).expm1().abs().mean(0, keepdim=True)


def _log_mean(logits: Tensor, dim: int, w: Tensor | None = None) -> Tensor:
    """The log of the mean of exp(logits), with weights that sum to 1; its derivatives in w exist at w = 0 too."""
    if w is None:
        return logits.logsumexp(dim, keepdim=True) - math.log(logits.shape[dim])
    top = logits.detach().masked_fill(w == 0, -torch.inf).amax(dim, keepdim=True)
    e = (logits - top).clamp_max(MAX_EXPONENT).exp()
    return (e * w).sum(dim, keepdim=True).log() + top


def _soft_min(C: Tensor, g: Tensor, b: Tensor, eps: float) -> Tensor:
    """-ε log Σ_j b_j exp((g_j - C_ij) / ε), [N]."""
    gap = (g - C) / eps
    if bool((gap.abs() < 0.1).all()):  # a large ε would multiply the rounding error of log 1
        return -eps * (b * gap.expm1()).sum(-1).log1p()
    return -eps * (b.log() + gap).logsumexp(-1)


def _solve(system: Tensor, v: Tensor) -> Tensor:
    """The solution of a positive definite system; 0 where rounding has made it indefinite."""
    factor, failed = torch.linalg.cholesky_ex(system)
    solution = torch.cholesky_solve(v.unsqueeze(-1), factor).squeeze(-1)
    return solution if int(failed) == 0 else torch.zeros_like(v)


def _eye(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
