"""Everything an agent has learned, as one flat dictionary of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wgflow_rl.agents.protocol import Agent


def snapshot(agent: Agent) -> dict[str, Tensor]:
    """Parameters, buffers and optimiser moments, named 'policy.net.first.weight', 'optimiser.3.exp_avg', ..."""
    tensors = {
        f"{name}.{key}": t
        for name, module in agent.modules.items()
        for key, t in module.state_dict().items()
    }
    for index, moments in agent.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(t) for key, t in moments.items()}
    return tensors


def restore(agent: Agent, tensors: Mapping[str, Tensor]) -> None:
    """Load what `snapshot` returned, in place. Raises: ValueError naming the module that does not fit."""
    for name, module in agent.modules.items():
        try:
            module.load_state_dict(under(tensors, name))
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint does not fit {name!r}; it was written with other settings. {error}"
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
