"""Everything an agent has learned, as one flat dictionary of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wgflow_rl.agents.agent import Agent


def snapshot(agent: Agent) -> dict[str, Tensor]:
    """Parameters, buffers and optimiser moments, named 'policy.net.first.weight', 'optimiser.3.exp_avg', ..."""
    tensors = dict(agent.state_dict())
    for index, moments in agent.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(t) for key, t in moments.items()}
    return tensors


def restore(agent: Agent, tensors: Mapping[str, Tensor]) -> None:
    """Load what `snapshot` returned, in place. Raises: ValueError naming the tensors that do not fit."""
    weights = {k: t for k, t in tensors.items() if not k.startswith("optimiser.")}
    try:
        agent.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint does not fit; it was written with other settings or an older version. {error}"
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in under(tensors, "optimiser").items():
        index, _, moment = key.partition(".")
        state.setdefault(int(index), {})[moment] = tensor
    groups = agent.optimiser.state_dict()["param_groups"]
    agent.optimiser.load_state_dict({"state": state, "param_groups": groups})


def under(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors called 'name.KEY', by KEY."""
    prefix = name + "."
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
