"""The folder of a run, made without training."""

from pathlib import Path

import torch

from wgflow_rl.agents import methods
from wgflow_rl.training import checkpoint
from wgflow_rl.training.runlog import RunLog
from wgflow_rl.training.settings import as_json, from_command_line
from wgflow_rl.training.snapshot import snapshot


def untrained(folder: Path, *flags: str) -> Path:
    """Make the folder of a run in the maze (observations and actions of dimension 2) with a checkpoint of step 12."""
    settings = from_command_line(["--hidden", "16", "16", "--seed", "3", *flags])
    statistics = {"obs_mean": torch.ones(2), "obs_std": 2 * torch.ones(2)}
    agent = methods.build(settings.agent, obs_dim=2, action_dim=2, **statistics)
    with RunLog(folder, tensorboard=False) as log:
        log.config(as_json(settings))
    tensors = {f"agent.{name}": t for name, t in snapshot(agent.modules, agent.optimiser).items()}
    checkpoint.save(folder / "checkpoints", step=12, tensors=tensors, state={"best": [12, 0.5]})
    return folder
