"""The figure of a policy's actions shows what the agent does, on the axes where its proposals differ most."""

import numpy as np
import pytest
import torch

from tests.runs import untrained
from wgflow_rl import actions
from wgflow_rl.training.trained import load_agent, visited_states


def test_a_picture_of_proposals_and_of_what_is_executed(tmp_path):
    pytest.importorskip("matplotlib")
    run = untrained(tmp_path / "run")
    path = actions.run(actions.Args(run, state=1, samples=20).check())
    assert path == run / "actions.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob(".*.tmp"))


def test_a_method_without_values_has_a_picture_too(tmp_path):
    pytest.importorskip("matplotlib")
    run = untrained(tmp_path / "run", "--method", "bc")
    agent, _, _ = load_agent(run)
    assert actions.values(agent, torch.zeros(2), np.zeros((3, 2), np.float32)) is None
    assert actions.run(actions.Args(run, samples=5, out=tmp_path / "a.png").check()).exists()


@pytest.mark.parametrize("number", [0, 2])
def test_proposals_are_single_samples_in_the_state_asked_for(number, tmp_path, monkeypatch):
    run, shown = untrained(tmp_path / "run"), []
    monkeypatch.setattr(actions, "draw", lambda *what: shown.extend(what))
    actions.run(actions.Args(run, state=number, samples=20).check())
    proposed, executed, value, *_ = shown
    agent, settings, _ = load_agent(run)
    state = visited_states(agent, settings, 3)[number]
    for drawn, samples in ((proposed, 1), (executed, agent.act_samples)):
        one, _, _ = load_agent(run, act_samples=samples)
        same = one.act(state.expand(len(drawn), -1), torch.Generator().manual_seed(0)).flatten(1)
        np.testing.assert_array_equal(drawn, same.numpy())
    assert (len(proposed), len(executed)) == (20, actions.EXECUTED)
    assert actions.values(agent, state, executed).mean() > value.mean()


# Of them, two rank by the mean of the critics and two by their minimum.
@pytest.mark.parametrize("method", ["dfp-ml-energy", "qc-bfn", "idql", "ifql"])
def test_the_executed_chunk_has_the_highest_of_the_values_that_colour_it(tmp_path, method):
    run = untrained(tmp_path / "run", "--method", method, "--act-temperature", "0")
    agent, _, _ = load_agent(run, act_samples=8)
    plain, _, _ = load_agent(run, act_samples=1)
    for seed in range(10):
        state = torch.randn(2, generator=torch.Generator().manual_seed(seed))
        executed = agent.act(state[None], torch.Generator().manual_seed(seed)).flatten(1)
        obs = plain.normalise(state[None])
        noise = plain.draw_latent(obs, 8, torch.Generator().manual_seed(seed))
        proposed = plain.sample(obs, noise)[0].clamp(-1, 1).detach().numpy()
        best = actions.values(agent, state, proposed).argmax()
        np.testing.assert_allclose(executed[0].numpy(), proposed[best], atol=1e-6)


def test_the_axes_are_orthonormal_and_hold_all_of_a_plane():
    generator = np.random.default_rng(0)
    plane = generator.normal(size=(2, 5))
    x = generator.normal(size=(50, 2)) @ plane + 3
    mean, axes, share = actions.principal_axes(x)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose((x - mean) @ axes.T @ axes + mean, x)
    np.testing.assert_allclose(share.sum(), 1)
    assert share[0] >= share[1]


def test_one_coordinate_and_equal_chunks_have_axes_too():
    _, axes, share = actions.principal_axes(np.arange(6.0)[:, None])
    assert np.abs(axes).tolist() == [[1.0], [0.0]]
    assert share.tolist() == [1.0, 0.0]
    assert actions.principal_axes(np.ones((6, 4)))[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--state", "-1"], "at least 0"),
        (["--samples", "2"], "at least 3"),
        (["--out", "a.gif"], "ends in .png"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(flags, why, capsys):
    with pytest.raises(SystemExit):
        actions.main(["nowhere", *flags])
    assert why in capsys.readouterr().err
