"""Losses of one equation each, shared by the methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import wgflow as wg
from wgflow_rl.agents.sampling import Field, vp_noise
from wgflow_rl.data.batch import Batch

# ---- values ------------------------------------------------------------------------------------


def td_loss(
    critic: nn.Module, batch: Batch, next_value: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """mean (Q_i(s_t, a_{t:t+h}) - y)^2 with y = R_h + gamma^h m_h V(s_{t+h}); and scalars to log.

    The mean is over both critics and over chunks whose target is known. next_value [B]; no gradient reaches it.
    """
    y = (batch.returns + batch.discount * next_value).detach()
    q = critic(batch.obs, batch.chunk)[..., 0]  # [2, B]
    loss = ((q - y).square() * batch.complete).mean()
    return loss, {"q": q.detach().mean(), "td_target": y.mean()}


def advantage_weight(advantage: Tensor, alpha: float, most: float = 100.0) -> Tensor:
    """min(exp(alpha A), most): the weight of advantage-weighted regression (IQL Eq. 7; the cap is its code's)."""
    return (alpha * advantage).exp().clamp(max=most)


def value_scale(q: Tensor) -> Tensor:
    """1 / mean |Q|, which makes a value loss free of the reward's units (TD3+BC, Fujimoto and Gu 2021)."""
    return 1 / q.detach().abs().mean().clamp_min(1e-6)


# ---- cloning by drifting -----------------------------------------------------------------------


def drift_loss(field: wg.Field, a_hat: Tensor, batch: Batch) -> Tensor:
    """L_BC of DFP Eq. 18: samples regress onto a_hat + V, V towards the data's chunk. a_hat [B, G, C].

    Samples are not clipped, so that the field pulls saturated coordinates back. Steps after the end of a trajectory
    are 0 in both.
    """
    x = a_hat * batch.mask
    with torch.no_grad():
        V = field(x, batch.chunk * batch.mask)
    return wg.regress_onto(x, V)


# ---- generative models -------------------------------------------------------------------------


def flow_matching(velocity: Field, obs: Tensor, actions: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """(v(s, x_t, t) - (a - x_0))^2 with x_t = (1 - t) x_0 + t a (FQL, Park et al. 2025, Eq. 1), elementwise.

    actions, x0 [B, G, C]; t [B, G, 1] -> [B, G, C]. Noise is at t = 0, actions are at t = 1.
    """
    return (velocity(obs, (1 - t) * x0 + t * actions, t) - (actions - x0)).square()


def mean_flow(
    field: Field, obs: Tensor, actions: Tensor, e: Tensor, r: Tensor, t: Tensor
) -> Tensor:
    """(u(z_t, r, t) - sg[v - (t - r) du/dt])^2, the MeanFlow identity (Geng et al. 2025, Eq. 6, 10), elementwise.

    z_t = (1 - t) a + t e, v = e - a; du/dt = v d_z u + d_t u by forward-mode differentiation. Here noise is at t = 1.
    actions, e [B, G, C]; 0 <= r <= t <= 1, [B, G, 1]. Gradient through u alone.
    """
    z, v = (1 - t) * actions + t * e, e - actions
    u, du_dt, *_ = torch.func.jvp(
        lambda z, r, t: field(obs, z, r, t), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
    )
    return (u - (v - (t - r) * du_dt).detach()).square()


def noise_prediction(eps: Field, obs: Tensor, actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """(eps(s, alpha_t a + sigma_t e, t) - e)^2 (Ho et al. 2020, Eq. 14), elementwise. actions, noise [B, G, C]."""
    alpha, sigma = vp_noise(t)
    return (eps(obs, alpha * actions + sigma * noise, t) - noise).square()


def energy_score(samples: Tensor, y: Tensor) -> Tensor:
    """E|x - y| - E|x - x'| / 2 per state (Gneiting and Raftery 2007), unbiased in the samples: lower is better.

    samples [B, G, C] with G >= 2, y [B, C] -> [B], in the units of y. Strictly proper: its mean over (s, y) is
    least when the samples have the distribution of y given s.
    """
    g = samples.shape[1]
    to_data = (samples - y[:, None]).norm(dim=-1).mean(-1)
    # Direct differences: the matrix product that cdist prefers above 25 points leaves the diagonal above 0.
    pairs = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
    between = pairs.sum((-2, -1)) / (g * (g - 1))
    return to_data - between / 2
