r"""Particles carried by a velocity field: dx/dt = v(x), from x0, with what happened on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Trajectory", "flow"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Snapshots of a flow: `points` [K, ..., N, D] at `times` [K], and the rms speed at each of them, `speed` [K]."""

    points: Tensor
    times: Tensor
    speed: Tensor
    stopped: str  # why it ended: "steps", "at rest" or "asked to"

    @property
    def end(self) -> Tensor:
        """The last positions, [..., N, D]."""
        return self.points[-1]

    def __len__(self) -> int:
        return len(self.times)


def flow(
    velocity: Callable[[Tensor], Tensor],
    x0: Tensor,
    *,
    dt: float,
    steps: int,
    method: str = "euler",
    tolerance: float = 0.0,
    stop: Callable[[Tensor, float], bool] | None = None,
    keep: int = 100,
) -> Trajectory:
    r"""Integrate dx/dt = velocity(x) from `x0`: Euler (error O(dt)) or Heun (O(dt²), two velocities a step).

    A field that is a displacement V moves a fraction dt of it per step: dt <= 1 is a damped fixed-point step.

    Args:
        velocity: [..., N, D] -> [..., N, D], for instance lambda x: drifting_field(x, pos, x, kernel=k).
        dt: time step, > 0; steps: how many at most; method: "euler" or "heun".
        tolerance: end once the rms speed is at or below it (same units as the velocity); 0 never does, at
            rest excepted.
        stop: (x, t) -> True to end there.
        keep: snapshots to store at most, evenly thinned; the first and the last are always among them.
    Returns: a `Trajectory`. No graph is recorded: a simulation, not a loss.
    Raises: ValueError on dt, steps, keep or method; FloatingPointError when the points cease to be finite.
    """
    if not 0 < dt < math.inf:
        raise ValueError(
            f"dt = {dt!r}; wanted a positive time step such as 0.1. To run backwards, negate the velocity."
        )
    if steps < 1 or keep < 2:
        raise ValueError(
            f"steps = {steps}, keep = {keep}; wanted at least 1 step and 2 snapshots (first and last)."
        )
    if method not in ("euler", "heun"):
        raise ValueError(f'method = {method!r} is unknown; wanted "euler" or "heun".')
    every = max(1, math.ceil(steps / (keep - 1)))
    x, points, times, speeds, stopped = x0.detach().clone(), [], [], [], "steps"
    with torch.no_grad():
        for i in range(steps + 1):
            v = velocity(x)
            speed = v.square().mean().sqrt() * math.sqrt(x.shape[-1])  # rms of |v| over points
            if not bool(speed.isfinite()):
                raise FloatingPointError(
                    f"the velocity is not finite at step {i} (t = {i * dt:g}); take a smaller dt or a bounded gate."
                )
            if bool(speed <= tolerance):
                stopped = "at rest"
            elif stop is not None and stop(x, i * dt):
                stopped = "asked to"
            ended = stopped != "steps" or i == steps
            if ended or i % every == 0:
                points.append(x.clone())
                times.append(i * dt)
                speeds.append(speed)
            if ended:
                break
            ahead = x + dt * v
            x = ahead if method == "euler" else x + (0.5 * dt) * (v + velocity(ahead))
    return Trajectory(
        torch.stack(points), torch.tensor(times, dtype=torch.float64), torch.stack(speeds), stopped
    )
