"""Settings that all methods share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wgflow_rl.utils.flags import MOST, Count, NonNegative, Share, at_least, at_most, check_limits


@dataclass(frozen=True)
class AgentConfig:
    """Numbers of the protocol that every method shares (Li et al. 2025; Koo et al. 2026, Table 5)."""

    chunk: Count = 5  # h, actions per chunk, executed open loop; 1 on every offline row
    # observations that an agent reads: the last ones, the first of an episode repeated
    history: Count = 1
    # Actions that the policy predicts, of which the first `chunk` are executed before it predicts anew (receding
    # horizon; Chi et al. 2023). 0: as many as are executed.
    horizon: int = 0
    gamma: float = 0.99  # discount per environment step
    lr: float = 3e-4  # Adam, all networks
    # fraction of lr that is left at the end of the online phase, linearly; 1: constant
    lr_end: Share = 1.0
    # fraction of lr that is left at the end of the offline phase, by a cosine; 1: constant
    lr_end_offline: Share = 1.0
    weight_decay: NonNegative = 0.0  # decoupled (AdamW instead of Adam), all networks
    # norm of all gradients together beyond which they are scaled down; 0: never
    max_grad_norm: NonNegative = 0.0
    target_rate: Share = 5e-3  # Polyak rate of the target networks
    average: Share = 0.0  # EMA of the policy's weights per update, which acts; 0: the policy itself
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    # Widths of residual blocks of a policy that read the observation alone, once for all samples of a state; `hidden`
    # are then residual blocks that also read the noise. (): a multilayer perceptron of both.
    trunk: tuple[int, ...] = ()
    batch: Count = 256  # chunks per update
    standardise: bool = False  # observations to zero mean and unit variance over the offline data

    @property
    def predicted(self) -> int:
        """Number of actions that the policy predicts."""
        return self.horizon or self.chunk

    @property
    def chunks(self) -> dict[str, Any]:
        """What `Replay.sample` has to know of a chunk: its length, the predicted actions, the discount."""
        return {"chunk": self.chunk, "horizon": self.predicted, "gamma": self.gamma}

    @property
    def online_only(self) -> frozenset[str]:
        """Names of the settings that no update and no evaluation before the online phase depends on.

        Subclasses do not inherit them: another agent may use a setting in another way.
        """
        return frozenset()

    def check(self) -> None:
        """Raise ValueError for the first value out of range, naming its command-line flag."""
        check_limits(self)
        at_least(1, hidden=min(self.hidden, default=0), trunk=min(self.trunk, default=1))
        for name, value in vars(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int):
                    at_most(MOST, **{name: number})
        if self.horizon:
            at_least(self.chunk, horizon=self.horizon)
        if self.trunk and (len(set(self.hidden)) != 1 or len(set(self.trunk)) != 1):
            raise ValueError(
                f"--hidden is {self.hidden} and --trunk is {self.trunk}; residual blocks need equal widths"
            )
        if not 0 < self.gamma < 1:
            raise ValueError(f"--gamma is {self.gamma}; wanted a discount in (0, 1)")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr is {self.lr}; wanted a positive learning rate")


@dataclass(frozen=True)
class TopKConfig(AgentConfig):
    """Numbers of DFP's top-K term and of its best-of-N acting, which MVP takes over (Koo et al. 2026)."""

    candidates: int = 16  # N, samples of the old policy per state (DFP Eq. 15, Table 5)
    # K, positives among them: 4 on OGBench, 2 on Robomimic (DFP Sec. 5.1, Table 5)
    top_k: Count = 4
    old_rate: Share = 1e-4  # tau_EMA, rate of the old policy (DFP Table 5)
    # a' is the best of these by the critic; 1: a' ~ pi (DFP Eq. 1, for every method by A.2). The published code: 16.
    target_samples: Count = 1
    act_samples: Count = 16  # N', the best of these is executed (DFP Table 5)
    act_temperature: NonNegative = 0.0  # 0: the best (paper); else a draw from softmax(Q / this)

    def check(self) -> None:
        super().check()
        at_least(self.top_k, candidates=self.candidates)
