"""Several agents of one configuration, their weights stacked: one update serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from wgflow_rl.agents.agent import Agent
from wgflow_rl.data.batch import Batch
from wgflow_rl.training.finite import losses
from wgflow_rl.training.updates import Outcome, counts_updates


class Body(nn.Module):
    """All modules of an agent as one, so that what the agent does can be done with other tensors in their place."""

    def __init__(self, agent: Agent):
        super().__init__()
        for name, module in agent.named_children():
            self.add_module(name, module)

    def forward(self, act: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return act(*args, **options)


class Stacked:
    """The update of S agents at once; everything it takes and gives has S in front.

    Weights, buffers and moments become rows of stacked tensors [S, ...], and each agent's own become views of its row:
    it acts, is diagnosed and saved as before. An agent is restored before it is stacked, not after.

    Raises: ValueError for agents of different settings, that have made different numbers of updates, or that count
        their updates themselves.
    """

    def __init__(self, agents: Sequence[Agent]):
        self.agents = tuple(agents)
        lead, bodies = self.agents[0], [Body(agent) for agent in self.agents]
        if any(type(agent) is not type(lead) or agent.cfg != lead.cfg for agent in self.agents):
            raise ValueError(
                "agents of different settings cannot be stacked; wanted the same but for the seed"
            )
        if counts_updates(lead):
            raise ValueError(
                f"{type(lead).__name__} counts its own updates, so its seeds cannot share one; run each in a process "
                "of its own: python -m wgflow_rl.sweep"
            )
        self._body, self._lead = bodies[0], lead
        own = [dict(body.named_parameters()) | dict(body.named_buffers()) for body in bodies]
        self.tensors: dict[str, Tensor] = {}
        for name, first in own[0].items():
            stacked = torch.stack([tensors[name].detach() for tensors in own])
            for row, tensors in zip(stacked, own, strict=True):
                tensors[name].data = row
            self.tensors[name] = stacked.requires_grad_(first.requires_grad)
        names = {id(tensor): name for name, tensor in own[0].items()}
        self._learned = [
            names[id(p)] for group in lead.optimiser.param_groups for p in group["params"]
        ]
        self._own = own
        self._given: set[str] = set()  # weights whose moments the agents see
        self.optimiser = type(lead.optimiser)(
            [self.tensors[name] for name in self._learned], **lead.optimiser.defaults
        )
        self._take_moments()

    def __call__(self, batch: Batch, noise: Any, *, online: bool) -> Outcome:
        def loss(
            tensors: dict[str, Tensor], batch: Batch, noise: Any
        ) -> tuple[Tensor, dict[str, Tensor]]:
            return functional_call(
                self._body, tensors, (self._lead.loss, batch, noise), {"online": online}
            )

        each, log = vmap(loss)(self.tensors, batch, noise)
        self.optimiser.zero_grad()
        each.sum().backward()
        self.optimiser.step()  # no weight of one seed is in the loss of another
        functional_call(self._body, self.tensors, (self._lead.update_targets,))
        self._give_moments()
        watched = losses(log) | {
            f"gradient of {name}": grad
            for name in self._learned
            if (grad := self.tensors[name].grad) is not None
        }
        extremes = torch.stack(
            [e for t in watched.values() for e in t.reshape(len(t), -1).aminmax(dim=1)], 1
        )
        return Outcome(log, tuple(watched), extremes.isfinite().view(len(extremes), -1, 2).all(2))

    def _take_moments(self) -> None:
        """The optimiser goes on from the moments that the agents have."""
        for name in self._learned:
            first, *others = (
                agent.optimiser.state.get(tensors[name], {})
                for agent, tensors in zip(self.agents, self._own, strict=True)
            )
            counts = {k: t for k, t in first.items() if t.dim() == 0}
            if any(
                state.keys() != first.keys()
                or any(state[k] != count for k, count in counts.items())
                for state in others
            ):
                raise ValueError(
                    "agents that have made different numbers of updates cannot be stacked"
                )
            self.optimiser.state[self.tensors[name]] = {
                k: t if k in counts else torch.stack([t, *(state[k] for state in others)])
                for k, t in first.items()
            }
        self._give_moments()

    def _give_moments(self) -> None:
        """Each agent's optimiser holds its row of every moment, and the one count of steps."""
        for name in self._learned:
            state = self.optimiser.state[self.tensors[name]]
            if not state or name in self._given:
                continue
            self._given.add(name)
            for s, (agent, tensors) in enumerate(zip(self.agents, self._own, strict=True)):
                agent.optimiser.state[tensors[name]] = {
                    k: t if t.dim() == 0 else t[s] for k, t in state.items()
                }
