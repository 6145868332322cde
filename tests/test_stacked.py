"""Stacked agents learn what they would learn alone, and stay agents of their own."""

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_map

from wgflow_rl.agents import methods
from wgflow_rl.data.batch import Batch
from wgflow_rl.training import updates
from wgflow_rl.training.snapshot import restore, snapshot
from wgflow_rl.training.stacked import Stacked

B, S, A = 8, 3, 2
STACKABLE = [name for name in methods.METHODS if name != "rebrac"]


def build(method="dfp", seed=0, **numbers):
    cfg = dataclasses.replace(methods.ROWS[method], hidden=(16, 16), batch=B)
    small = {"candidates": 6, "top_k": 2, "target_samples": 3, "flow_steps": 3, "standardise": True}
    cfg = dataclasses.replace(cfg, **{k: v for k, v in small.items() if hasattr(cfg, k)} | numbers)
    return methods.build(
        cfg,
        obs_dim=S,
        action_dim=A,
        seed=seed,
        obs_mean=torch.full((S,), 0.1 * seed),
        obs_std=torch.ones(S),
    )


def seeds(method="dfp", count=3, **numbers):
    return [build(method, seed, **numbers) for seed in range(count)]


def draw(agent, g):
    """The batch and the noise of one update."""
    h, valid = agent.cfg.chunk, torch.ones(B, agent.cfg.chunk)
    valid[::4, h // 2 + 1 :] = 0
    batch = Batch(
        obs=torch.randn(B, S, generator=g),
        actions=torch.rand(B, h, A, generator=g) * 2 - 1,
        valid=valid,
        returns=torch.randn(B, generator=g),
        discount=torch.full((B,), 0.9**h),
        next_obs=torch.randn(B, S, generator=g),
        next_actions=torch.rand(B, h, A, generator=g) * 2 - 1,
        next_valid=valid,
        complete=valid[:, -1],
    )
    return batch, agent.draw_noise(B, g)


def works(agents, seed=0):
    """A batch and noise for each agent; and the same with the agents in front."""
    g = torch.Generator().manual_seed(seed)
    each = [draw(agent, g) for agent in agents]
    return each, tree_map(lambda *t: torch.stack(t), *each)


def weights(agent):
    return snapshot(agent.modules, agent.optimiser)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_learn_alike(method, count, tolerance):
    """Losses and weights of three seeds in a stack and of the same alone, offline updates, then online ones."""
    alone, stacked = seeds(method), Stacked(seeds(method))
    for i in range(count):
        each, together = works(alone, i)
        online = i >= count // 2
        outcome = stacked(*together, online=online)
        for s, agent in enumerate(alone):
            log = updates.update(agent, *each[s], online=online)
            assert log.keys() == outcome.log.keys()
            for name, value in log.items():
                torch.testing.assert_close(
                    outcome.log[name][s], value, rtol=tolerance, atol=tolerance, msg=name
                )
    for one, other in zip(alone, stacked.agents, strict=True):
        a, b = weights(one), weights(other)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("method", STACKABLE)
def test_a_seed_of_a_stack_learns_what_it_learns_alone(method, double):
    assert_learn_alike(method, 6, 1e-11)


def test_two_hundred_updates_in_float32_differ_by_rounding_alone():
    assert_learn_alike("dfp", 200, 1e-4)


def test_a_stack_of_one_and_its_agent_are_one():
    agent = build()
    stacked = Stacked([agent])
    before = {name: t.clone() for name, t in stacked.tensors.items()}
    stacked(*works([agent])[1], online=False)
    own = dict(agent.policy.named_parameters())
    for name, weight in own.items():
        assert torch.equal(stacked.tensors[f"policy.{name}"][0], weight)
        assert not torch.equal(before[f"policy.{name}"][0], weight)
        weight.data.zero_()  # either is the other
        assert not stacked.tensors[f"policy.{name}"].any()


def test_the_switch_to_online_reaches_the_stack():
    agents = seeds(count=2)
    stacked = Stacked(agents)
    for i in range(3):
        stacked(*works(agents, i)[1], online=False)
    agents[1].start_online()
    moved = (
        stacked.tensors["old_policy.net.first.weight"] == stacked.tensors["policy.net.first.weight"]
    )
    assert moved[1].all()
    assert not moved[0].all()


def test_agents_saved_from_a_stack_and_stacked_again_go_on_as_if_nothing_had_happened():
    whole = Stacked(seeds())
    for i in range(6):
        whole(*works(whole.agents, i)[1], online=False)
    first, fresh = Stacked(seeds()), seeds()
    for i in range(3):
        first(*works(first.agents, i)[1], online=False)
    for old, new in zip(first.agents, fresh, strict=True):
        restore(new.modules, new.optimiser, {name: t.clone() for name, t in weights(old).items()})
    second = Stacked(fresh)
    for i in range(3, 6):
        second(*works(fresh, i)[1], online=False)
    for one, other in zip(whole.agents, second.agents, strict=True):
        a, b = weights(one), weights(other)
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("what", ["batch", "weights"])
def test_what_is_not_finite_in_one_seed_is_named_and_leaves_the_others_alone(what):
    well, ill = Stacked(seeds()), Stacked(seeds())
    together = works(well.agents)[1]
    well(*together, online=True)
    if what == "batch":
        together[0].returns[1, 0] = torch.nan
    else:
        next(ill.agents[1].policy.parameters()).data[0] = torch.inf
    outcome = ill(*together, online=True)
    assert outcome.finite.all(1).tolist() == [True, False, True]
    bad = [name for name, ok in zip(outcome.names, outcome.finite[1], strict=True) if not ok]
    assert bad[0] == "critic_loss"
    assert "gradient of critic.nets.0.first.weight" in bad
    for s in (0, 2):
        a, b = weights(well.agents[s]), weights(ill.agents[s])
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_agents_that_cannot_share_an_update_are_refused():
    with pytest.raises(
        ValueError, match=r"ReBRAC counts its own updates.*python -m wgflow_rl\.sweep"
    ):
        Stacked(seeds("rebrac"))
    with pytest.raises(ValueError, match="different settings cannot be stacked"):
        Stacked([build(), build(lr=1e-3)])
    ahead = build(seed=1)
    updates.update(ahead, *works([ahead])[0][0], online=False)
    with pytest.raises(ValueError, match="different numbers of updates"):
        Stacked([build(), ahead])
