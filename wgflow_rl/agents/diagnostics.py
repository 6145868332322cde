"""Measures on held-out chunks, the same for every agent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import wgflow as wg
from wgflow_rl.agents.losses import energy_score
from wgflow_rl.data.batch import Batch

SAMPLES = 8  # chunks per state for comparing a policy with its data: DFP's G


def compare_with_data(samples: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Measure how far a policy is from the data it clones. samples [B, G, C], as generated (not clipped).

    energy_score: lower is better, strictly proper. spread_ratio: E|x-x'| / E|x-y|, about 1 for a policy that covers its
    data, 0 for a deterministic one (G = 1, counted as two equal samples). clipped: share of coordinates outside
    [-1, 1]. Over whole chunks; NaN if the batch has none.
    """
    if samples.shape[1] == 1:
        samples = torch.cat([samples, samples], 1)
    whole = batch.valid[:, -1] > 0
    x, y = samples[whole], batch.actions.flatten(1)[whole]
    if not len(x):
        return dict.fromkeys(
            ("energy_score", "spread_ratio", "clipped"), samples.new_tensor(math.nan)
        )
    return {
        "energy_score": energy_score(x, y).mean(),
        "spread_ratio": wg.spread_ratio(x, y[:, None]),
        "clipped": (x.abs() > 1).float().mean(),
    }


def candidates(score: Tensor, k: int) -> dict[str, Tensor]:
    """Values of the N candidates per state and of the K best, and the soft target nearest to the top-K. score [B, N].

    matched_temperature: mean over states of the alpha whose weights exp(Q / alpha) are nearest to the uniform top-K, in
    units of Q; matched_tv: the remaining total variation (`wgflow.matched_temperature`); ess: effective sample size of
    those weights, between 1 (one candidate takes all) and N.
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
    """Mean value of the proposed chunks and expected value of the executed one (`sampling.choose`). score [B, N].

    The executed chunk is the best, or with a temperature a draw from softmax(Q / temperature).
    """
    best = temperature == 0
    chosen = score.amax(-1) if best else ((score / temperature).softmax(-1) * score).sum(-1)
    return {"q_proposed": score.mean(), "q_executed": chosen.mean()}
