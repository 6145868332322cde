"""A batch of action chunks: the interface between replay and agents."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of h-step chunks; B states, chunk length h, action size A, T >= h actions per prediction (usually h)."""

    obs: Tensor  # [B, S] s_t
    actions: Tensor  # [B, T, A] a_t ... a_{t+T-1}; after the trajectory's end, its last action
    valid: Tensor  # [B, T] 1 where the action belongs to the trajectory of s_t
    returns: (
        Tensor  # [B] R_h = sum_i gamma^i r_{t+i}, up to and including the step that ends the task
    )
    discount: Tensor  # [B] gamma^h, 0 where the task ended inside the chunk
    next_obs: Tensor  # [B, S] s_{t+h}
    next_actions: Tensor  # [B, T, A] a_{t+h} ... a_{t+h+T-1}, the data's actions from s_{t+h} on
    next_valid: Tensor  # [B, T] 1 where that action belongs to the same trajectory
    complete: Tensor  # [B] 1 where the h-step target is known: whole chunk, or task ended inside it

    @property
    def chunk(self) -> Tensor:
        """`actions` as one vector per chunk, [B, 1, C] with C = T A."""
        return self.actions.flatten(1)[:, None]

    @property
    def mask(self) -> Tensor:
        """`valid` per coordinate of the chunk, [B, 1, C]."""
        return self.valid.repeat_interleave(self.actions.shape[-1], dim=1)[:, None]

    @property
    def next_chunk(self) -> Tensor:
        """`next_actions` as one vector per chunk, [B, 1, C]."""
        return self.next_actions.flatten(1)[:, None]

    @property
    def next_mask(self) -> Tensor:
        """`next_valid` per coordinate of the chunk, [B, 1, C]."""
        return self.next_valid.repeat_interleave(self.actions.shape[-1], dim=1)[:, None]
