"""Every method on a one-step bandit whose answers are known, and on a chain whose values are known.

Behaviour: actions N(m, 0.2² I) with m = (.5, .5) or (-.5, -.5), half and half. Reward: r(a) = exp(-|a - c|² / 2s²) +
0.4 exp(-|a + c|² / 2s²), c = (.5, .5), s = .5. So the data know a better and a worse place, and their mean is bad.
"""

import functools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.small_agents import Twins, without_penalty
from wgflow_rl.agents import presets
from wgflow_rl.data import Episodes
from wgflow_rl.data.batch import Batch
from wgflow_rl.data.replay import Replay
from wgflow_rl.training.updates import update

SIGMA, S, STEPS, BATCH = 0.2, 0.5, 350, 64
ALIKE = {
    "hidden": (32, 32),
    "batch": BATCH,
    "lr": 5e-3,
    "chunk": 1,
    "target_rate": 0.05,
    "candidates": 8,
    "top_k": 2,
    "old_rate": 0.02,
    "target_samples": 1,
    "act_samples": 16,
}
ONE = torch.ones(BATCH)


def reward(a):
    c = torch.tensor([0.5, 0.5])
    near = lambda m: (-(a - m).square().sum(-1) / (2 * S**2)).exp()
    return near(c) + 0.4 * near(-c)


def behaviour(*shape, generator):
    sign = torch.randint(0, 2, (*shape, 1), generator=generator) * 2.0 - 1
    return (sign * 0.5 + SIGMA * torch.randn(*shape, 2, generator=generator)).clamp(-1, 1)


@functools.cache
def trained(method, **numbers):
    """The agent after STEPS updates on the bandit, all of them online."""
    cfg = presets.ROWS[method]
    known = {field.name for field in fields(cfg)}
    cfg = replace(cfg, **({name: v for name, v in ALIKE.items() if name in known} | numbers))
    agent, g = presets.build(cfg, obs_dim=1, action_dim=2), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        a = behaviour(BATCH, 1, generator=g)
        batch = Batch(
            obs=ONE[:, None],
            actions=a,
            valid=ONE[:, None],
            returns=reward(a[:, 0]),
            discount=0 * ONE,
            next_obs=ONE[:, None],
            next_actions=a,
            next_valid=0 * ONE[:, None],
            complete=ONE,
        )
        update(agent, batch, agent.draw_noise(BATCH, g), online=True)
    return agent


def play(agent, n=1024):
    return agent.act(torch.ones(n, 1), torch.Generator().manual_seed(1))[:, 0]


def draws(agent, n=1024):
    """What the policy proposes before any choice by value."""
    cfg = agent.cfg
    try:
        if hasattr(cfg, "act_samples"):
            agent.cfg = replace(cfg, act_samples=1)
        return play(agent, n)
    finally:
        agent.cfg = cfg


# ---- what each method can reach ------------------------------------------------------------------------------------


@functools.cache
def data():
    return behaviour(20_000, 16, generator=torch.Generator().manual_seed(2))


def best_of_16():
    return reward(data()).max(1).values.mean()


def anywhere():
    return 1 + 0.4 * math.exp(-1 / S**2)  # at c, to within 1e-3


def the_mean():
    return reward(torch.zeros(2))


def soft_target(alpha):
    """E r under pi+ ~ behaviour exp(alpha r), the target of KL-regularised improvement."""
    r = reward(data())
    return (r * (alpha * r).exp()).mean() / (alpha * r).exp().mean()


def mean_of_soft_target(alpha):
    """r at the mean of pi+: all that a Gaussian of fixed width can say of it."""
    w = (alpha * reward(data())).exp()
    return reward((w[..., None] * data()).mean((0, 1)) / w.mean())


REACHABLE = [
    *((name, {}, best_of_16) for name in ("bfn", "mvp", "idql", "ifql")),
    *((name, {"lam": 2.0}, best_of_16) for name in ("dfp-ml-energy", "mvp-topk")),
    *((name, {"lam": 0.0}, best_of_16) for name in ("dfp-published", "dfp-ml", "dfp-energy")),
    ("dfp-ml-energy-no-topk", {}, best_of_16),
    ("bc", {}, the_mean),
    ("iql", {}, lambda: mean_of_soft_target(10)),
    ("fawac", {"alpha": 2.0, "lr": 1e-2}, lambda: soft_target(2)),
    # A one-step problem needs no caution: the penalty is made weak, and the whole box is reachable.
    ("fql", {"alpha": 0.03}, anywhere),
    ("fbrac", {"alpha": 0.03, "flow_steps": 5}, anywhere),
    ("rebrac", {}, anywhere),
    ("srpo", {"beta": 1.0}, anywhere),
    ("cac", {"eta": 1.0}, anywhere),
    ("driftql", {"alpha": 0.1, "generated": 8}, anywhere),
]


@pytest.mark.parametrize(
    ("method", "numbers", "optimum"), REACHABLE, ids=[row[0] for row in REACHABLE]
)
def test_a_method_reaches_what_its_own_restriction_allows(method, numbers, optimum):
    assert reward(play(trained(method, **numbers))).mean() >= 0.95 * optimum()


CLONES = [
    *((name, {}) for name in ("bfn", "mvp", "idql", "ifql", "dfp-ml-energy-no-topk")),
    *((name, {"lam": 0.0}) for name in ("dfp-published", "dfp-ml", "dfp-energy")),
    ("fql", {"alpha": 100.0}),
    ("fbrac", {"alpha": 30.0, "flow_steps": 5}),
    ("fawac", {"alpha": 0.0}),
    ("cac", {"eta": 0.0}),
    ("fedit", {"edit_scale": 0.0, "critics": 2, "flow_steps": 5}),
    ("qam", {"inverse_temperature": 0.0, "critics": 2, "flow_steps": 5}),
]


@pytest.mark.parametrize(("method", "numbers"), CLONES, ids=[row[0] for row in CLONES])
def test_without_values_both_modes_are_kept(method, numbers):
    a = draws(trained(method, **numbers))
    right = (a.sum(-1) > 0).float().mean()
    near = torch.minimum((a - 0.5).norm(dim=-1), (a + 0.5).norm(dim=-1))
    assert 0.3 < right < 0.7
    # the data's own: 1.18 SIGMA; noise or the mean: 3.5 SIGMA and more
    assert near.median() < 2.5 * SIGMA


@pytest.mark.parametrize("method", ["dfp-no-topk", "bc"])
def test_what_regresses_to_the_mean_loses_both(method):
    """With one positive per state Eq. 3 pulls every sample to it, and best-of-N has nothing to choose from."""
    a = draws(trained(method))
    assert a.std(0).max() < 0.2
    assert a.norm(dim=-1).max() < 0.45  # near the mean, where the data have next to nothing
    assert reward(play(trained(method))).mean() < 0.7 * best_of_16()


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        ("dfp-ml-energy", {"lam": 2.0}),
        ("mvp-topk", {"lam": 2.0}),
        ("dfp-ml-energy", {"lam": 2.0, "positives": "boltzmann", "temperature": 0.1}),
        ("dfp-ml-energy", {"lam": 2.0, "positives": "matched"}),
        ("dfp-ml-energy", {"lam": 1.0, "improve_field": "energy", "repulsion": 1.0}),
        ("dfp-ml-energy-no-topk", {"q_weight": 2.0}),
    ],
    ids=["top-K", "MeanFlow of the top-K", "Boltzmann", "matched", "worst as negatives", "values"],
)
def test_positives_of_the_old_policy_move_the_mass_to_the_better_mode(method, numbers):
    assert (draws(trained(method, **numbers)).sum(-1) > 0).float().mean() > 0.75


@pytest.mark.parametrize(
    ("method", "numbers"),
    [("fedit", {"edit_scale": 1.0, "flow_steps": 5}), ("qam", {"inverse_temperature": 5.0})],
)
def test_flows_that_values_edit_or_tilt_prefer_the_better_mode(method, numbers):
    """Both are far from their optimum after STEPS updates: the entropy bonus and the adjoint take longer."""
    a = play(trained(method, critics=2, lr=1e-2, **numbers))
    assert (a.sum(-1) > 0).float().mean() > 0.7
    assert reward(a).mean() > 1.1 * reward(data()).mean()


def test_the_temperature_says_how_far_it_moves():
    """exp(Q / alpha) with a large alpha is no tilt at all: the positives are the old policy itself."""
    flat = draws(trained("dfp-ml-energy", lam=2.0, positives="boltzmann", temperature=100.0))
    assert 0.25 < (flat.sum(-1) > 0).float().mean() < 0.75


# ---- a chain ---------------------------------------------------------------------------------------------------------

GAMMA, LENGTH, CUT = 0.9, 5, 3


def known(obs):
    """Value of position p of a chain of L = LENGTH steps that cost 1 each: -(1 - g^(L-p)) / (1 - g)."""
    return -(1 - GAMMA ** (LENGTH - obs)) / (1 - GAMMA)  # [B, 1]


class KnownValue(nn.Module):
    def forward(self, obs):
        return known(obs)[:, 0]


def known_critics(low, high):
    """Twin critics that are off the known values by `low` and `high`."""
    off = lambda by: lambda obs, chunks: (known(obs) + by).expand(chunks.shape[:-1])
    return Twins(off(low), off(high))


def chain():
    """One trajectory that reaches the end, where the task ends, and one that is cut after CUT steps."""
    p = np.float32([*range(LENGTH), *range(CUT)])[:, None]
    end = np.array([0, 0, 0, 0, 1, 0, 0, 1], bool)
    return Episodes(
        observations=p,
        actions=np.zeros((8, 1), np.float32),
        rewards=-np.ones(8, np.float32),
        masks=np.float32([1, 1, 1, 1, 0, 1, 1, 1]),
        terminals=end,
        next_observations=p + 1,
        env="chain",
    )


@pytest.mark.parametrize("method", sorted(set(presets.METHODS) - set(presets.CLONERS)))
def test_the_known_values_of_a_chain_solve_every_critic_equation(method):
    """R_h + g^h Q(s_{t+h}) = Q(s_t) over every chunk whose target is known: inside, to the end, beyond it, at a cut.

    The target critics are unequal: their mean, or for some methods their minimum, is the known value.
    """
    for chunk in (1, 2, 3, 5, 7):
        numbers = {"hidden": (8,), "chunk": chunk} | without_penalty(method)
        agent = presets.build(replace(presets.ROWS[method], **numbers), obs_dim=1, action_dim=1)
        pessimistic = hasattr(agent, "value") or method in ("cac", "rebrac")
        agent.target_critic = known_critics(*((0, 2) if pessimistic else (-1, 1)))
        agent.critic, agent.value = known_critics(0, 0), KnownValue()
        batch = Replay(chain(), capacity=8).chunks(torch.arange(8), chunk=chunk, gamma=GAMMA)
        assert batch.complete.tolist() == [1.0] * LENGTH + [
            float(p + chunk <= CUT) for p in range(CUT)
        ]
        noise = agent.draw_noise(8, torch.Generator().manual_seed(0))
        loss, _ = agent.critic_loss(batch, noise)
        assert loss < 1e-8  # with IQL's values, that of V too
