"""The presets `paper` and `paper-offline` against the paper's Tables 5 and 8, cell by cell."""

import csv
from importlib.resources import files

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from wgflow_rl.agents import presets

PUBLISHED = files("wgflow_rl.experiments") / "published"
CUBES = [
    f"cube-{size}-play-singletask-task{task}-v0"
    for size in ("double", "triple", "quadruple")
    for task in (2, 3, 4)
]
ROBOMIMIC = [f"{task}-mh-low_dim" for task in ("lift", "can", "square")]
ENVIRONMENTS = {
    "all": CUBES + ROBOMIMIC,
    "OGBench (cube)": CUBES,
    "Robomimic (lift, can, square)": ROBOMIMIC,
    "all but FQL, BFN": CUBES + ROBOMIMIC,
    "FQL, BFN": CUBES + ROBOMIMIC,
}
SINGLE = ("fql", "bfn")  # one action at a time
MAIN = ("bfn", "qc-bfn", "fql", "qc-fql", "mvp", "mvp-topk", "dfp", "dfp-no-topk")  # Tables 1, 2, 6


def table(number):
    with (PUBLISHED / f"table{number}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def bandwidths(cell):
    return "+".join(f"drifting:{float(h):g}" for h in cell.strip("{}").split(","))


def agent(name):
    """A setting of the agent as a row of Table 5 spells it."""
    return lambda cfg, schedule: getattr(cfg, name)


# Parameter of Table 5 -> (its value in the resolved settings, how to read the cell).
SETTINGS = {
    "Batch size": (agent("batch"), int),
    "Discount factor": (agent("gamma"), float),
    "Learning rate": (agent("lr"), float),
    "Target network update rate": (agent("target_rate"), float),
    "Number of offline training steps": (lambda cfg, schedule: schedule.offline_steps, float),
    "Number of online training steps": (lambda cfg, schedule: schedule.online_steps, float),
    "Policy network width": (lambda cfg, schedule: set(cfg.hidden), lambda cell: {int(cell)}),
    "Value network width": (lambda cfg, schedule: set(cfg.hidden), lambda cell: {int(cell)}),
    "Policy network depth": (lambda cfg, schedule: f"{len(cfg.hidden)} hidden layers", str),
    "Value network depth": (lambda cfg, schedule: f"{len(cfg.hidden)} hidden layers", str),
    "Chunking horizon": (agent("chunk"), int),
    "Number of candidates for top-K": (agent("candidates"), int),
    "Number of generated actions": (agent("generated"), int),
    "Drift weight": (agent("lam"), float),
    "Actor EMA smoothing": (agent("old_rate"), float),
    "Number of best-of-N'": (agent("act_samples"), int),
    "Top-K positive set size": (agent("top_k"), int),
    "Kernel bandwidth": (agent("field"), bandwidths),
}
GRADIENT_STEPS = "Total gradient steps"
NETWORKS = {
    "Optimizer",
    "Policy activation function",
    "Policy layer normalization",
    "Value activation function",
    "Value layer normalization",
    "Value ensemble size",
    "Value ensemble operator",
}


def rows_of(row):
    """The methods that a row of Table 5 speaks of."""
    if row["applies_to"] == "FQL, BFN":
        return SINGLE
    if row["applies_to"] == "all but FQL, BFN":
        return tuple(method for method in MAIN if method not in SINGLE)
    if row["block"] == "Shared":
        return MAIN
    return ("dfp",) if row["parameter"] == "Drift weight" else ("dfp", "dfp-no-topk")


@pytest.mark.parametrize(
    "row",
    [row for row in table(5) if row["parameter"] not in NETWORKS],
    ids=lambda row: f"{row['parameter']}, {row['applies_to']}",
)
def test_the_paper_preset_is_table_5(row):
    for method in rows_of(row):
        for env in ENVIRONMENTS[row["applies_to"]]:
            cfg, schedule = presets.preset("paper", method, env)
            if row["parameter"] == GRADIENT_STEPS:  # no update while the first online steps collect
                ours = schedule.offline_steps + schedule.online_steps - schedule.online_start
                assert float(row["value"]) - ours == 5_000
                continue
            value, read = SETTINGS[row["parameter"]]
            assert value(cfg, schedule) == read(row["value"]), (method, env)
            if row["parameter"] == "Kernel bandwidth":
                assert cfg.improve_field == cfg.field


class Activations(TorchFunctionMode):
    """The names of the activation functions called inside the block."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in {"gelu", "relu", "silu", "elu", "leaky_relu", "tanh", "mish"}:
            self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


def test_the_networks_and_the_optimiser_are_those_of_table_5():
    said = {row["parameter"]: row["value"] for row in table(5)}
    assert set(said) == set(SETTINGS) | NETWORKS | {GRADIENT_STEPS}
    cfg, _ = presets.preset("paper", "dfp", CUBES[0])
    dfp = presets.build(cfg, obs_dim=3, action_dim=2)
    assert type(dfp.optimiser).__name__ == said["Optimizer"]
    for net, name in ((dfp.policy, "Policy"), (dfp.critic, "Value")):
        with Activations() as used:
            net(torch.randn(4, 3), torch.randn(4, 1, 2 * cfg.chunk))
        assert used.names == {said[f"{name} activation function"].lower()}
        normalised = said[f"{name} layer normalization"] == "True"
        assert any(isinstance(m, nn.LayerNorm) for m in net.modules()) == normalised
    obs, actions = torch.randn(4, 3), torch.randn(4, 1, 2 * cfg.chunk)
    each = dfp.critic(obs, actions)
    assert len(each) == int(said["Value ensemble size"])
    assert said["Value ensemble operator"] == "MEAN"
    torch.testing.assert_close(dfp.critic.mean(obs, actions), each.mean(0))


ROWS_8 = {"lambda": "lam", "N": "candidates", "K": "top_k"}


@pytest.mark.parametrize("row", table(8), ids=lambda row: f"{row['task']}, {row['symbol']}")
@pytest.mark.parametrize("method", ["dfp", "dfp-published", "dfp-ml-energy"])
def test_the_offline_preset_is_table_8(method, row):
    kind, task = row["task"].rsplit("-", 1)
    cfg, schedule = presets.preset("paper-offline", method, f"{kind}-play-singletask-{task}-v0")
    if row["symbol"] != "h":
        assert getattr(cfg, ROWS_8[row["symbol"]]) == float(row["value"])
    elif method == "dfp":
        assert cfg.field == cfg.improve_field == bandwidths(row["value"])
    assert cfg.lam_offline == cfg.lam  # "applied throughout training" (B.2)
    # "we disable both action chunking and best-of-N'"
    assert (cfg.chunk, cfg.act_samples) == (1, 1)
    assert (schedule.offline_steps, schedule.online_steps) == (1_000_000, 0)


@pytest.mark.parametrize("env", CUBES + ROBOMIMIC)
def test_the_four_rows_of_table_2_have_the_same_td_target(env):
    rows = [presets.preset("paper", m, env)[0] for m in ("mvp", "mvp-topk", "dfp", "dfp-no-topk")]
    assert {cfg.target_samples for cfg in rows} == {1}  # a' ~ pi (Eq. 1)
    assert rows[1].top_k == rows[2].top_k  # "the same top-K multi-positive set" (A.2)
