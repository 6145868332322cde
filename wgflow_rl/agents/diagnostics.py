"""What the losses hide, measured the same way for every agent on held-out chunks."""

from __future__ import annotations

import torch
from torch import Tensor

import wgflow as wg
from wgflow_rl.agents import ops
from wgflow_rl.data.batch import Batch

SAMPLES = 8  # chunks a state on which a policy is compared with its data: DFP's G


def against_data(samples: Tensor, batch: Batch) -> dict[str, Tensor]:
    """How far a policy is from the data it clones; samples [B, G, C], G >= 2, as generated (not clipped).

    energy_score: lower is better, strictly proper. spread_ratio: E|x-x'| / E|x-y|, about 1 for a policy that covers its
    data, 0 for one without noise. clipped: share of coordinates outside [-1, 1]. Over whole chunks.
    """
    whole = batch.valid[:, -1] > 0
    x, y = samples[whole], batch.actions.flatten(1)[whole]
    return {
        "energy_score": ops.energy_score(x, y).mean(),
        "spread_ratio": wg.spread_ratio(x, y[:, None]),
        "clipped": (x.abs() > 1).float().mean(),
    }


def of_candidates(score: Tensor, k: int) -> dict[str, Tensor]:
    """Values of N candidates a state, score [B, N], of the K best, and the soft target the top-K is nearest to.

    matched_temperature: mean over states of the alpha whose exp(Q / alpha) tilt is nearest to the uniform top-K, in the
    units of Q; matched_tv: the total variation that is left (`wgflow.matched_temperature`); ess: the effective number
    of candidates under that tilt, between 1 (one takes all) and N.
    """
    alpha, tv = wg.matched_temperature(score, k=k)
    tilt = wg.boltzmann_weights(score, alpha=alpha)
    return {
        "q_candidates": score.mean(),
        "q_positives": score.topk(k, dim=-1).values.mean(),
        "matched_temperature": alpha.mean(),
        "matched_tv": tv.mean(),
        "ess": wg.effective_sample_size(tilt).mean(),
    }


def executed(score: Tensor, temperature: float = 0.0) -> dict[str, Tensor]:
    """Value of the chunks a policy proposes and of the one it executes. score [B, N].

    That is the best of them, or with a temperature the mean of the draw from softmax(Q / temperature): `ops.choose`.
    """
    best = temperature == 0
    chosen = score.amax(-1) if best else ((score / temperature).softmax(-1) * score).sum(-1)
    return {"q_proposed": score.mean(), "q_executed": chosen.mean()}


def repeat(chunk: Tensor) -> Tensor:
    """A policy without noise as equal samples, [B, 1, C] -> [B, 2, C]: its energy score is its mean error."""
    return torch.cat([chunk, chunk], 1)
