"""What an agent is given to learn from: the waist between data and algorithms."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of h-step chunks; B states, chunk length h, action size A."""

    obs: Tensor  # [B, S] s_t
    actions: Tensor  # [B, h, A] a_t ... a_{t+h-1}; after the end of its trajectory, the last action repeated
    valid: Tensor  # [B, h] 1 while the trajectory goes on
    returns: Tensor  # [B] R_h = sum_i gamma^i r_{t+i}, up to and with the step that ends the task
    discount: Tensor  # [B] gamma^h, 0 where the task ended inside the chunk
    next_obs: Tensor  # [B, S] s_{t+h}
    next_actions: Tensor  # [B, h, A] a_{t+h} ... a_{t+2h-1}, the data's own answer to s_{t+h}
    next_valid: Tensor  # [B, h] 1 where that action is of the same trajectory
    complete: Tensor  # [B] 1 where R_h and the bootstrap are known: the chunk is whole, or the task ended inside it
