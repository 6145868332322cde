"""The rows of the paper's tables as data: what each method is trained with, and where each number comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents.agent import Agent
from wgflow_rl.agents.bc import BC, BCConfig
from wgflow_rl.agents.bfn import BFN, BFNConfig
from wgflow_rl.agents.cac import CAC, CACConfig
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.dfp import DFP, DFPConfig
from wgflow_rl.agents.fawac import FAWAC, FAWACConfig
from wgflow_rl.agents.fbrac import FBRAC, FBRACConfig
from wgflow_rl.agents.fql import FQL, FQLConfig
from wgflow_rl.agents.idql import IDQL, IDQLConfig
from wgflow_rl.agents.ifql import IFQL, IFQLConfig
from wgflow_rl.agents.iql import IQL, IQLConfig
from wgflow_rl.agents.mvp import MVP, MVPConfig
from wgflow_rl.agents.rebrac import ReBRAC, ReBRACConfig
from wgflow_rl.agents.srpo import SRPO, SRPOConfig


@dataclass(frozen=True)
class Schedule:
    """How long, how often, and on how much data. Steps are updates offline, environment steps online."""

    offline_steps: int
    online_steps: int
    online_start: int  # environment steps before the first online update
    online_share: (
        float  # fraction of each online batch drawn from online data alone; 0: one uniform ring
    )
    eval_every: int
    eval_episodes: int
    checkpoint_every: int
    log_every: int
    data_rows: (
        int | None
    )  # rows generated when no data folder is given; None: the size of the official set


# ---- the methods ---------------------------------------------------------------------------------------------------

ONLINE: dict[str, AgentConfig] = {  # offline, then online: the DFP paper's Tables 1, 2, 3, 6
    "bfn": BFNConfig(chunk=1, target_samples=4, act_samples=4),  # N = 4 (DFP appendix)
    "qc-bfn": BFNConfig(),
    "fql": FQLConfig(chunk=1),
    "qc-fql": FQLConfig(),
    "mvp": MVPConfig(),
    "mvp-topk": MVPConfig(lam=0.5),  # the weight of DFP's term (Table 3)
    "dfp": DFPConfig(),
    "dfp-eq3": DFPConfig(field="eq3:0.05", improve_field="eq3:0.05"),  # h of Table 5
    "dfp-released": DFPConfig(
        field="released:0.1", improve_field="released:0.1"
    ),  # released: [0.1] for every task
    "dfp-ml": DFPConfig(field="likelihood", improve_field="likelihood"),
    "dfp-energy": DFPConfig(field="energy", improve_field="energy"),
    "dfp-no-topk": DFPConfig(lam=0.0),
}
OFFLINE: dict[str, AgentConfig] = {  # offline alone: the DFP paper's Table 7, beside fql and dfp
    "bc": BCConfig(),
    "iql": IQLConfig(),
    "rebrac": ReBRACConfig(),
    "idql": IDQLConfig(),
    "srpo": SRPOConfig(),
    "cac": CACConfig(),
    "fawac": FAWACConfig(),
    "fbrac": FBRACConfig(),
    "ifql": IFQLConfig(),
}
ROWS = ONLINE | OFFLINE
METHODS = tuple(ROWS)
AGENTS: dict[type[AgentConfig], Callable[..., Agent]] = {
    BFNConfig: BFN,
    BCConfig: BC,
    IQLConfig: IQL,
    ReBRACConfig: ReBRAC,
    IDQLConfig: IDQL,
    SRPOConfig: SRPO,
    CACConfig: CAC,
    FAWACConfig: FAWAC,
    FBRACConfig: FBRAC,
    IFQLConfig: IFQL,
    DFPConfig: DFP,
    FQLConfig: FQL,
    MVPConfig: MVP,
}

ROBOMIMIC = ("lift", "can", "square")
# What the papers set for single tasks: methods, beginnings of environment names, numbers, source. Later rows win.
TASKS: tuple[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], str], ...] = (
    (("dfp", "dfp-ml", "dfp-energy", "mvp-topk"), ROBOMIMIC, {"top_k": 2}, "DFP Sec. 5.1"),
    (("dfp-eq3", "dfp-released"), ROBOMIMIC, {"top_k": 2}, "DFP Sec. 5.1"),
    (
        ("dfp-eq3",),
        ROBOMIMIC,
        {"field": "eq3:0.005+eq3:0.05", "improve_field": "eq3:0.005+eq3:0.05"},
        "DFP Table 5",
    ),
    (("mvp", "mvp-topk"), ("cube-triple",), {"ivc": 0.0}, "DFP's released commands"),
    (("fql", "qc-fql"), ("cube-triple",), {"alpha": 100.0}, "DFP appendix"),
    (
        ("fql", "qc-fql"),
        ("cube-double", "cube-single", "scene"),
        {"alpha": 300.0},
        "FQL's commands; DFP appendix",
    ),
    (("fql", "qc-fql"), ("puzzle",), {"alpha": 1000.0}, "FQL's commands"),
    (
        ("fql", "qc-fql"),
        ("cube-quadruple", *ROBOMIMIC),
        {"alpha": 100.0},
        "not public: our choice, as cube-triple",
    ),
    (
        ("fql", "qc-fql"),
        ("pointmaze",),
        {"alpha": 3.0},
        "not in the papers: the best of 1, 3, 10, 30 for qc-fql in the medium maze, one seed each",
    ),
)


# ---- schedules and presets -------------------------------------------------------------------------------------------

PAPER = Schedule(  # the protocol of Q-chunking and DFP: 1M + 1M, evaluation every 100k
    offline_steps=1_000_000,
    online_steps=1_000_000,
    online_start=5_000,
    online_share=0.0,
    eval_every=100_000,
    eval_episodes=50,
    checkpoint_every=100_000,
    log_every=5_000,
    data_rows=None,
)

MAZE = DFPConfig(
    hidden=(256, 256),
    candidates=8,
    top_k=2,
    batch=128,
    lr=1e-3,
    lr_end=0.1,  # a constant rate leaves the critic noisy, and one wrong spot of it traps every episode
    target_rate=3e-2,  # 30 chunks from start to goal: a slower target critic carries the value there too late
    old_rate=1e-3,
    target_samples=4,
    act_samples=16,
    act_temperature=1.0,  # in steps to the goal; the best alone, where the critic is wrong, is wrong every time
    standardise=True,
)
ARM = replace(MAZE, target_rate=1e-2, lr_end=1.0, act_samples=32, act_temperature=0.0)
LIFT = ARM  # also for can and square, on which it has not been measured

MAZE_SCHEDULE = Schedule(
    offline_steps=4_000,
    online_steps=1_500,
    online_start=250,
    online_share=0.1,
    eval_every=500,
    eval_episodes=20,
    checkpoint_every=1_000,
    log_every=100,
    data_rows=100_000,
)
ARM_SCHEDULE = Schedule(
    offline_steps=8_000,
    online_steps=6_000,
    online_start=0,
    online_share=0.0,
    eval_every=2_000,
    eval_episodes=25,
    checkpoint_every=2_000,
    log_every=250,
    data_rows=100_000,
)
LIFT_SCHEDULE = Schedule(
    offline_steps=1_000,
    online_steps=1_000,
    online_start=0,
    online_share=0.0,
    eval_every=250,
    eval_episodes=20,
    checkpoint_every=500,
    log_every=50,
    data_rows=10_000,
)

# What the laptop preset gives every method alike, so that two rows differ in the method alone: DFP's numbers for the
# environment. What makes a row that row (chunk, N of bfn, weights of losses) stays its own.
ALIKE = (
    *("gamma", "lr", "lr_end", "target_rate", "hidden", "batch", "standardise"),
    *("candidates", "top_k", "old_rate", "target_samples", "act_samples", "act_temperature"),
)
PRESETS = ("laptop", "paper", "paper-offline")


def preset(name: str, method: str, env: str) -> tuple[AgentConfig, Schedule]:
    """The agent's settings and the schedule for a preset, a method and an environment.

    Methods of the offline table have no online phase in any preset; `paper-offline` is that table for all of them:
    chunks of one action, no online phase. Raises: ValueError naming the known ones.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; known methods: {', '.join(METHODS)}")
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; known presets: {', '.join(PRESETS)}")
    agent = paper(method, env)
    schedule = PAPER
    if name == "laptop":
        like, schedule = ARM, ARM_SCHEDULE
        if env.startswith("pointmaze"):
            like, schedule = MAZE, MAZE_SCHEDULE
        if env.startswith(ROBOMIMIC):
            like, schedule = LIFT, LIFT_SCHEDULE
        agent = laptop(method, agent, like)
    if name == "paper-offline":
        agent = replace(agent, chunk=1)
    if name == "paper-offline" or method in OFFLINE:
        schedule = replace(schedule, online_steps=0, online_start=0)
    return agent, schedule


def paper(method: str, env: str) -> AgentConfig:
    """A row with what its paper sets for the task."""
    agent = ROWS[method]
    for methods, beginnings, numbers, _ in TASKS:
        if method in methods and env.startswith(beginnings):
            agent = replace(agent, **numbers)
    return agent


def laptop(method: str, agent: AgentConfig, like: DFPConfig) -> AgentConfig:
    """A row at laptop size: DFP's numbers in whatever they have in common."""
    if isinstance(agent, DFPConfig):  # the variants differ in field and lam alone
        own = (
            {} if method == "dfp" else {"field": agent.field, "improve_field": agent.improve_field}
        )
        return replace(like, **own, lam=like.lam if agent.lam > 0 else 0.0)
    known = {field.name for field in dataclasses.fields(agent)}
    own = {"target_samples", "act_samples"} if method == "bfn" else set()
    return replace(agent, **{name: getattr(like, name) for name in ALIKE if name in known - own})


def build(
    cfg: AgentConfig,
    *,
    obs_dim: int,
    action_dim: int,
    seed: int = 0,
    obs_mean: Tensor | None = None,
    obs_std: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Agent:
    """The agent of these settings, its weights drawn from `seed`.

    Args:
        obs_dim, action_dim: sizes of one observation and one action (actions in [-1, 1]).
        obs_mean, obs_std: [S] statistics of the data, used when cfg.standardise.
    """
    return AGENTS[type(cfg)](
        cfg,
        obs_dim=obs_dim,
        action_dim=action_dim,
        seed=seed,
        obs_mean=obs_mean,
        obs_std=obs_std,
        device=device,
    )
