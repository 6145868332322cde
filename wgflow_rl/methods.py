"""The presets as data: what each method is trained with, and where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wgflow_rl.agents.dfp import DFPConfig


@dataclass(frozen=True)
class Schedule:
    """How long, how often, and on how much data. Steps are updates offline, environment steps online."""

    offline_steps: int
    online_steps: int
    online_start: int  # environment steps before the first online update
    online_share: float  # fraction of each online batch drawn from online data alone; 0: one uniform ring
    eval_every: int
    eval_episodes: int
    checkpoint_every: int
    log_every: int
    data_rows: int | None  # rows generated when no data folder is given; None: the size of the official set


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
    standardise=True,
)
ARM = replace(MAZE, target_rate=1e-2, lr_end=1.0, act_samples=32)

MAZE_SCHEDULE = Schedule(
    offline_steps=4_000,
    online_steps=1_500,
    online_start=250,
    online_share=0.25,
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

METHODS = ("dfp",)
PRESETS = ("laptop", "paper")


def preset(name: str, method: str, env: str) -> tuple[DFPConfig, Schedule]:
    """The agent's settings and the schedule for a preset, a method and an environment.

    Raises: ValueError naming the known ones.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; known methods: {', '.join(METHODS)}")
    if name == "paper":
        return DFPConfig(), PAPER
    if name == "laptop":
        return (MAZE, MAZE_SCHEDULE) if env.startswith("pointmaze") else (ARM, ARM_SCHEDULE)
    raise ValueError(f"preset is {name!r}; known presets: {', '.join(PRESETS)}")
