"""What an update costs: its arithmetic is counted right, every operation has a kind, blocks change no number."""

import dataclasses
import itertools

import pytest
import torch

from tests.children import python
from wgflow_rl import profile
from wgflow_rl.agents import networks, presets
from wgflow_rl.training.settings import Machine, from_command_line

TINY = ["--hidden", "16", "16", "--batch", "8"]


def forward_flops(
    rows: int, states: int, obs: int, chunk: int, hidden: tuple[int, ...], out: int
) -> int:
    """2 for each weight and row; the state's part of the first layer once a state."""
    widths = (*hidden, out)
    deep = sum(a * b for a, b in itertools.pairwise(widths))
    return 2 * rows * (chunk * hidden[0] + deep) + 2 * states * obs * hidden[0]


def test_the_products_of_a_network_are_counted_as_by_hand():
    net = networks.StateMLP(3, 4, 2, (32, 16), generator=torch.Generator().manual_seed(0))
    obs, v = torch.randn(5, 3), torch.randn(5, 7, 4)
    work = profile.work(lambda: net(obs, v))
    assert work.flops == forward_flops(35, 5, 3, 4, (32, 16), 2)
    # Each weight, bias and input once; each activation written by one product and read by the next.
    weights = 7 * 32 + 32 + 32 * 16 + 16 + 16 * 2 + 2
    assert work.bytes == 4 * (weights + 5 * (3 + 32) + 35 * (4 + 32 + 32 + 16 + 16 + 2))


def test_every_second_of_a_profile_has_a_kind():
    x, w = torch.randn(64, 64), torch.randn(64, 64)
    kinds = profile.by_kind(lambda: torch.nn.functional.gelu(x @ w).normal_(), calls=3)
    assert set(kinds) == {*profile.KINDS, "other operations"}
    # Further operations of one kind that no name of `KINDS` covers: their time is not lost.
    more = profile.by_kind(
        lambda: torch.nn.functional.gelu(x @ w).normal_().cumsum(0).cumsum(1), calls=3
    )
    assert more["other operations"][1] >= kinds["other operations"][1] + 2
    assert more["other operations"][0] > 0
    for kind in ("matrix products", "GELU", "random numbers"):
        assert kinds[kind][0] > 0
        assert kinds[kind][1] == 1
    assert kinds["LayerNorm"] == (0, 0)


@pytest.mark.parametrize("method", ["dfp", "srpo"])
def test_the_command_reports_any_method(method, capsys, monkeypatch):
    monkeypatch.setattr(profile, "measure_peaks", lambda: profile.Peaks(1e11, 1e10))
    monkeypatch.setattr(profile, "seconds", lambda call, at_least=0: float(call() is not None))
    profile.main(["--method", method, *TINY])
    said = capsys.readouterr().out
    assert f"{method}, pointmaze" in said
    assert "matrix products" in said
    assert "chunk sampling" in said


def test_its_help_is_its_own(capsys):
    with pytest.raises(SystemExit):
        profile.main(["--help"])
    said = capsys.readouterr().out
    assert "usage: python -m wgflow_rl.profile" in said
    assert "Profile an update" in said
    assert "Train one policy" not in said


def test_another_device_is_refused():
    settings = dataclasses.replace(from_command_line(TINY), machine=Machine(device="meta"))
    with pytest.raises(ValueError, match="wanted cpu"):
        profile.report(settings)


@pytest.mark.parametrize("method", ["dfp", "mvp", "srpo"])
def test_blocks_change_no_value(method, monkeypatch):
    """States that do not divide into blocks, networks with and without LayerNorm, one vector a state and several."""
    cfg = dataclasses.replace(presets.ROWS[method], hidden=(16, 16))
    agent = presets.build(cfg, obs_dim=3, action_dim=2)
    obs = torch.randn(13, 3)
    acts = []
    for block in (1 << 30, 40):
        monkeypatch.setattr(networks, "BLOCK", block)
        acts.append(agent.act(obs, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(*acts)


def test_the_profiler_writes_nothing_of_its_own_to_stderr():
    code = """
from wgflow_rl import profile
profile.seconds = lambda call, at_least=0: float(call() is not None)
profile.measure_peaks = lambda: profile.Peaks(1e11, 1e10)
profile.main(["--hidden", "16", "16"])
"""
    done = python("-c", code)
    assert "matrix products" in done.stdout
    assert "USDT" not in done.stderr
