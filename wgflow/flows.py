r"""Particles carried by a velocity field: dx/dt = v(x), from x0, with what happened on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Trajectory", "flow", "langevin"]

Velocity = Callable[..., Tensor]
Step = Callable[[Tensor, Tensor, float, float], tuple[Tensor, float, float]]  # x, v, t, dt -> x, t, next dt


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

    def save(self, path: str | Path) -> None:
        """Write the snapshots to an .npz file of plain arrays."""
        arrays = {name: getattr(self, name).detach().cpu().numpy() for name in ("points", "times", "speed")}
        np.savez_compressed(path, stopped=np.array(self.stopped), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote; nothing in the file is executed."""
        with np.load(path, allow_pickle=False) as file:
            points, times, speed = (torch.from_numpy(file[name]) for name in ("points", "times", "speed"))
            return cls(points, times, speed, str(file["stopped"]))


def flow(
    velocity: Velocity,
    x0: Tensor,
    *,
    dt: float,
    steps: int,
    method: str = "euler",
    accuracy: float = 1e-3,
    timed: bool = False,
    tolerance: float = 0.0,
    stop: Callable[[Tensor, float], bool] | None = None,
    keep: int = 100,
    progress: bool = False,
) -> Trajectory:
    r"""Integrate dx/dt = velocity(x) from `x0`: Euler (error O(dt)), Heun (O(dt²)), or Heun with a step that adapts.

    A field that is a displacement V moves a fraction dt of it per step: dt <= 1 is a damped fixed-point step.

    Args:
        velocity: [..., N, D] -> [..., N, D], for instance lambda x: drifting_field(x, pos, x, kernel=k).
        dt: time step, > 0 (the first one when adaptive); steps: how many at most.
        method: "euler"; "heun", two velocities a step; "adaptive", Heun with steps chosen so that the rms difference to
            Euler's step stays below `accuracy`, a length.
        timed: call velocity(x, t) instead, for instance to anneal a bandwidth.
        tolerance: end once the rms speed is at or below it (units of the velocity); 0 never does.
        stop: called as (x, t) before every step; True ends there. Also the place to watch a run.
        keep: snapshots to store at most, evenly thinned; the first and the last are always among them.
        progress: show a bar (needs tqdm).
    Returns: a `Trajectory`. No graph is recorded: a simulation, not a loss.
    Raises: ValueError on dt, steps, keep or method; FloatingPointError when the points cease to be finite.
    """
    if method not in ("euler", "heun", "adaptive"):
        raise ValueError(f'method = {method!r} is unknown; wanted "euler", "heun" or "adaptive".')
    if not accuracy > 0:
        raise ValueError(f"accuracy = {accuracy!r}; wanted a positive length, the error allowed to one step.")
    at = velocity if timed else lambda x, t: velocity(x)

    def euler(x: Tensor, v: Tensor, t: float, dt: float) -> tuple[Tensor, float, float]:
        return x + dt * v, t + dt, dt

    def heun(x: Tensor, v: Tensor, t: float, dt: float) -> tuple[Tensor, float, float]:
        return x + (0.5 * dt) * (v + at(x + dt * v, t + dt)), t + dt, dt

    def adaptive(x: Tensor, v: Tensor, t: float, dt: float) -> tuple[Tensor, float, float]:
        while True:
            change = (0.5 * dt) * (at(x + dt * v, t + dt) - v)
            error = _rms(change).item() / accuracy
            factor = min(4.0, max(0.1, 0.9 / math.sqrt(error))) if error > 0 else 4.0
            if error <= 1:
                return x + dt * v + change, t + dt, dt * factor
            dt *= factor if math.isfinite(error) else 0.1
            if t + dt == t:
                raise FloatingPointError(f"no step from t = {t:g} is accurate to {accuracy:g}; allow more.")

    step = {"euler": euler, "heun": heun, "adaptive": adaptive}[method]
    return _run(
        step, at, x0, dt=dt, steps=steps, tolerance=tolerance, stop=stop, keep=keep, progress=progress
    )


def langevin(
    score: Callable[[Tensor], Tensor],
    x0: Tensor,
    *,
    dt: float,
    steps: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: Callable[[Tensor, float], bool] | None = None,
    keep: int = 100,
    progress: bool = False,
) -> Trajectory:
    r"""Unadjusted Langevin dynamics dx = score(x) dt + sqrt(2 T) dW: samples p^(1/T), with a bias of order dt.

    The flow of KL(q || p) without a density estimate: noise does what the repulsion of `drifting_field` does.

    Args: score: ∇log p; dt: length² as score is 1/length; temperature T; generator: of the noise; others as `flow`.
    Returns: a `Trajectory` (its speed is that of the score). Raises: as `flow`; ValueError on a negative temperature.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature = {temperature!r}; wanted T >= 0, 1 to sample from p itself.")

    def kick(x: Tensor, v: Tensor, t: float, dt: float) -> tuple[Tensor, float, float]:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x + dt * v + math.sqrt(2 * temperature * dt) * noise, t + dt, dt

    at = lambda x, t: score(x)  # noqa: E731
    return _run(kick, at, x0, dt=dt, steps=steps, tolerance=0.0, stop=stop, keep=keep, progress=progress)


def _rms(v: Tensor) -> Tensor:
    """The rms length of the vectors v [..., D]."""
    return v.square().sum(-1).mean().sqrt()


def _run(
    step: Step,
    velocity: Velocity,
    x0: Tensor,
    *,
    dt: float,
    steps: int,
    tolerance: float,
    stop: Callable[[Tensor, float], bool] | None,
    keep: int,
    progress: bool,
) -> Trajectory:
    """The loop of every integrator: read the velocity, record, maybe end, step."""
    if not 0 < dt < math.inf:
        raise ValueError(
            f"dt = {dt!r}; wanted a positive time step such as 0.1. To run backwards, negate the velocity."
        )
    if steps < 1 or keep < 2:
        raise ValueError(
            f"steps = {steps}, keep = {keep}; wanted at least 1 step and 2 snapshots (first and last)."
        )
    every = math.ceil(steps / (keep - 1))
    x, t, stopped, records = x0.detach().clone(), 0.0, "steps", []
    bar = _bar(steps) if progress else None
    with torch.no_grad():
        for i in range(steps + 1):
            v = velocity(x, t)
            speed = _rms(v)
            if not bool(speed.isfinite()):
                raise FloatingPointError(
                    f"the velocity is not finite at step {i} (t = {t:g}); take a smaller dt or a bounded gate."
                )
            if tolerance > 0 and bool(speed <= tolerance):
                stopped = "at rest"
            elif stop is not None and stop(x, t):
                stopped = "asked to"
            ended = stopped != "steps" or i == steps
            if ended or i % every == 0:
                records.append((x.clone(), t, speed))
            if ended:
                break
            x, t, dt = step(x, v, t, dt)
            if bar is not None:
                bar.update()
    if bar is not None:
        bar.close()
    points, times, speeds = zip(*records, strict=True)
    return Trajectory(
        torch.stack(points), torch.tensor(times, dtype=torch.float64), torch.stack(speeds), stopped
    )


def _bar(steps: int):
    from tqdm.auto import tqdm  # the library itself does not need it

    return tqdm(total=steps, unit="step", leave=False)
