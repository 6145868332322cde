"""Networks compute what they are said to: layers, normalisation, initial weights, and what is frozen."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from wgflow_rl.agents import networks

B, S, C, HIDDEN = 3, 4, 5, (7, 6)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, hidden=HIDDEN, seed=0):
    sizes = (S, hidden) if kind is networks.StateValue else (S, C, hidden)
    return kind(*sizes, generator=rng(seed)).double()


def layered(weights, x, *, normalised):
    """Layers of GELU(x) = x P(z <= x), with LayerNorm after each if normalised, written out."""
    for number, (w, b) in enumerate(weights):
        if number:
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
            if normalised:
                centred = x - x.mean(-1, keepdim=True)
                x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        x = x @ w.T + b
    return x


def weights_of(net):
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    return [(layer.weight, layer.bias) for layer in layers]


def inputs(*widths, n=2):
    g = rng(1)
    vectors = [torch.randn(B, n, width, generator=g, dtype=torch.float64) for width in widths]
    return torch.randn(B, S, generator=g, dtype=torch.float64), *vectors


def joined(obs, *vectors):
    return torch.cat([obs[:, None].expand(-1, vectors[0].shape[1], -1), *vectors], -1)


def test_twin_critics_are_two_networks_with_layer_norm():
    critic, (obs, chunks) = make(networks.TwinCritic), inputs(C)
    weights = weights_of(critic)
    half = len(weights) // 2
    each = [
        layered(w, joined(obs, chunks), normalised=True)[..., 0]
        for w in (weights[:half], weights[half:])
    ]
    assert_close(critic(obs, chunks), torch.stack(each))
    assert_close(critic.mean(obs, chunks), (each[0] + each[1]) / 2)
    assert (each[0] - each[1]).abs().min() > 1e-3


def test_a_state_value_has_layer_norm():
    value, (obs,) = make(networks.StateValue), inputs()
    assert_close(value(obs), layered(weights_of(value), obs, normalised=True)[:, 0])


@pytest.mark.parametrize(
    ("kind", "widths"),
    [(networks.Policy, (C,)), (networks.VectorField, (C, 1)), (networks.DeterministicPolicy, ())],
)
def test_a_policy_has_no_layer_norm(kind, widths):
    policy, (obs, *vectors) = make(kind), inputs(*widths)
    x = joined(obs, *vectors) if vectors else obs[:, None]
    assert_close(policy(obs, *vectors), layered(weights_of(policy), x, normalised=False))


def test_a_mean_flow_policy_goes_from_noise_at_1_to_actions_at_0_in_one_step():
    policy, (obs, e, r, t) = make(networks.MeanVelocityPolicy), inputs(C, 1, 1)
    u = lambda *vectors: layered(weights_of(policy), joined(obs, *vectors), normalised=False)
    assert_close(policy.u(obs, e, r, t), u(e, r, t))
    assert_close(policy(obs, e), e - u(e, torch.zeros_like(r), torch.ones_like(r)))


def test_initial_weights_are_glorot_uniform_and_decided_by_the_generator():
    """Uniform in ±a with a² = 6 / (in + out), so of variance a² / 3; biases are 0."""
    nets = [make(networks.Policy, (150, 100), seed) for seed in (0, 0, 1)]
    for (w, b), (same, _), (other, _) in zip(*map(weights_of, nets), strict=True):
        bound = math.sqrt(6 / sum(w.shape))
        assert 0.98 * bound < w.abs().max() <= bound
        assert w.var().item() == pytest.approx(bound**2 / 3, rel=0.1)
        assert not b.any()
        assert torch.equal(w, same)
        assert not torch.equal(w, other)


def test_blocks_of_states_change_nothing(monkeypatch):
    critic, (obs, chunks) = make(networks.TwinCritic), inputs(C)
    whole = critic(obs, chunks).detach()
    monkeypatch.setattr(networks, "BLOCK", 2)
    with torch.no_grad():
        assert_close(critic(obs, chunks), whole)


def test_standardised_data_have_mean_0_and_deviation_1():
    x = 3 + 5 * torch.randn(1000, S, generator=rng(), dtype=torch.float64)
    z = networks.Standardise(x.mean(0), x.std(0))(x)
    assert_close(z.mean(0), torch.zeros(S).double(), atol=1e-9, rtol=0)
    assert_close(z.std(0), torch.ones(S).double())


def test_a_frozen_module_passes_gradients_to_its_inputs_alone():
    critic, (obs, chunks) = make(networks.TwinCritic), inputs(C)
    chunks.requires_grad_()
    value = networks.frozen(critic)(obs, chunks)
    assert_close(value, critic(obs, chunks))
    value.sum().backward()
    assert chunks.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())


def block(x, layers):
    """x + W_2 gelu(W_1 LayerNorm(x)), written out."""
    (w1, b1), (w2, b2) = layers
    h = normalised(x) @ w1.T + b1
    return x + (h * (1 + torch.erf(h / math.sqrt(2))) / 2) @ w2.T + b2


def normalised(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("width", [0, C])
def test_a_residual_network_is_its_formula(width):
    """f(s, v) = head(W_s trunk(s) + W_v v); with no vectors, a function of the state alone."""
    net = networks.ResidualStateMLP(S, width, 2, (6, 6), (8, 8, 8), generator=rng()).double()
    obs, v = inputs(width)
    trunk, head = weights_of(net.trunk), weights_of(net.head)
    x = obs @ trunk[0][0].T + trunk[0][1]
    for i in range(3):
        x = block(x, trunk[1 + 2 * i : 3 + 2 * i])
    x = normalised(x) @ net.state.weight.T + net.state.bias
    x = x[:, None] + (v @ net.vector.weight.T if width else 0)
    for i in range(2):
        x = block(x, head[2 * i : 2 * i + 2])
    x = normalised(x) @ head[4][0].T + head[4][1]
    assert_close(net(obs, v), x.expand(B, x.shape[1], 2))
