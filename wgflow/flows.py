r"""Particles carried by a velocity field: dx/dt = v(x), from x0, with what happened on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.trajectory import Trajectory

__all__ = ["flow", "langevin"]

Velocity = Callable[..., Tensor]
Step = Callable[
    [Tensor, Tensor, float, float], tuple[Tensor, float, float]
]  # x, v, t, dt -> x, t, next dt


@checked
def flow(
    velocity: Velocity,
    x0: Tensor,
    *,
    dt: float,
    steps: int,
    method: str = "euler",
    accuracy: float = 1e-3,
    momentum: float = 0.0,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    schedule: Callable[[float], float] | None = None,
    tolerance: float = 0.0,
    stop: Callable[[Tensor, float], bool] | None = None,
    callback: Callable[[Tensor, Tensor, float], object] | None = None,
    keep: int = 100,
    progress: bool = False,
) -> Trajectory:
    r"""Integrate dx/dt = velocity(x) from `x0`: Euler (error O(dt)), Heun (O(dt²)), or Heun with a step that adapts.

    Euler may carry momentum β, x⁺ = x + dt v + β (x - x⁻), Polyak's heavy ball, or noise, x⁺ = x + dt v + sqrt(2 T dt)
    ξ, Langevin's. A field that is a displacement V moves a fraction dt of it per step: dt <= 1 is a damped step.

    Args:
        velocity: [..., N, D] -> [..., N, D], for instance lambda x: drifting_field(x, pos, x, kernel=k).
        dt: time step, > 0 (the first one when adaptive); steps: how many at most.
        method: "euler"; "heun", two velocities a step; "adaptive", Heun with steps chosen so that the rms difference to
            Euler's step stays below `accuracy`, a length.
        momentum: β in [0, 1), "euler" only; near rest it moves as a plain flow with steps dt / (1 - β).
        temperature: T >= 0, "euler" only and without momentum; `generator` draws the noise.
        schedule: t -> a number; velocity is then called as velocity(x, schedule(t)). `Annealed(1.0, 0.1, over=5.0)` is
            a bandwidth that shrinks: lambda x, h: drifting_field(x, pos, x, kernel=Gaussian(h)).
        tolerance: end once the rms speed is at or below it (units of the velocity); 0 never does.
        stop: called as (x, t) before every step; True ends there.
        callback: called as (x, v, t) before every step and at the end, to watch; its result is ignored.
        keep: snapshots to store at most, evenly thinned; the first and the last are always among them.
        progress: show a bar (needs tqdm).
    Returns: a `Trajectory`. No graph is recorded: a simulation, not a loss.
    Raises: ValueError on x0, dt, steps, keep, method or what goes with it, and a velocity of another shape than x;
        FloatingPointError when the points cease to be finite.
    """
    _check(x0, dt, steps, keep, method, accuracy, momentum, temperature)
    at = (lambda x, t: velocity(x)) if schedule is None else (lambda x, t: velocity(x, schedule(t)))
    step = _stepper(method, at, accuracy, momentum, temperature, generator)

    every = math.ceil(steps / (keep - 1))
    x, t, stopped, records = x0.detach().clone(), 0.0, "steps", []
    bar = _bar(steps) if progress else None
    with torch.no_grad():
        for i in range(steps + 1):
            v = at(x, t)
            if v.shape != x.shape:
                raise ValueError(
                    f"velocity gave {list(v.shape)} at points {list(x.shape)}; wanted one vector for each point."
                )
            speed = _rms(v)
            if not bool(speed.isfinite()):
                raise FloatingPointError(
                    f"the velocity is not finite at step {i} (t = {t:g}); take a smaller dt or a bounded gate."
                )
            if callback is not None:
                callback(x, v, t)
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


@checked
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

    The flow of KL(q || p) without a density estimate: noise does what the repulsion of `drifting_field` does. It is
    `flow` with a temperature of 1 for a start.

    Args: score: ∇log p; dt: length² as score is 1/length; temperature T; generator: of the noise; others as `flow`.
    Returns: a `Trajectory` (its speed is that of the score). Raises: as `flow`; ValueError on a negative temperature.
    """
    return flow(
        score, x0, dt=dt, steps=steps, temperature=temperature, generator=generator, stop=stop, keep=keep,
        progress=progress,
    )  # fmt: skip


def _stepper(
    method: str,
    at: Callable[[Tensor, float], Tensor],
    accuracy: float,
    momentum: float,
    temperature: float,
    generator: torch.Generator | None,
) -> Step:
    """The step of a method: (x, v, t, dt) -> (x, t, next dt)."""
    before: list[Tensor] = []  # the last position, for momentum alone

    def euler(x: Tensor, v: Tensor, t: float, dt: float) -> tuple[Tensor, float, float]:
        moved = x + dt * v
        if momentum:
            moved = moved + momentum * (x - before[0]) if before else moved
            before[:] = [x]
        if temperature:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            moved = moved + math.sqrt(2 * temperature * dt) * noise
        return moved, t + dt, dt

    def heun(x: Tensor, v: Tensor, t: float, dt: float) -> tuple[Tensor, float, float]:
        return x + (0.5 * dt) * (v + at(x + dt * v, t + dt)), t + dt, dt

    def adaptive(x: Tensor, v: Tensor, t: float, dt: float) -> tuple[Tensor, float, float]:
        while True:
            change = (0.5 * dt) * (at(x + dt * v, t + dt) - v)
            error = _rms(change).item() / accuracy
            # Without any error the step stays: at rest it would grow until it overflows.
            factor = min(4.0, max(0.1, 0.9 / math.sqrt(error))) if error > 0 else 1.0
            if error <= 1:
                return x + dt * v + change, t + dt, dt * factor
            dt *= factor if math.isfinite(error) else 0.1
            if t + dt == t:
                raise FloatingPointError(
                    f"no step from t = {t:g} is accurate to {accuracy:g}; allow more."
                )

    return {"euler": euler, "heun": heun, "adaptive": adaptive}[method]


def _check(
    x0: Tensor,
    dt: float,
    steps: int,
    keep: int,
    method: str,
    accuracy: float,
    momentum: float,
    temperature: float,
) -> None:
    if not x0.is_floating_point() or x0.dim() < 2 or x0.numel() == 0:
        raise ValueError(
            f"x0 is {list(x0.shape)} {x0.dtype}; wanted [..., N, D] of a floating dtype, N >= 1."
        )
    if not 0 < dt < math.inf:
        raise ValueError(
            f"dt = {dt!r}; wanted a positive time step such as 0.1. To run backwards, negate the velocity."
        )
    if steps < 1 or keep < 2:
        raise ValueError(
            f"steps = {steps}, keep = {keep}; wanted at least 1 step and 2 snapshots (first and last)."
        )
    if method not in ("euler", "heun", "adaptive"):
        raise ValueError(f'method = {method!r} is unknown; wanted "euler", "heun" or "adaptive".')
    if not accuracy > 0:
        raise ValueError(
            f"accuracy = {accuracy!r}; wanted a positive length, the error allowed to one step."
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum = {momentum!r}; wanted 0 <= momentum < 1, such as 0.9.")
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature = {temperature!r}; wanted T >= 0, 1 to sample from p itself."
        )
    if (momentum or temperature) and method != "euler":
        raise ValueError(
            f'method = {method!r} takes neither momentum nor temperature; both are of "euler".'
        )
    if momentum and temperature:
        # The chain has a stationary law, but not p^(1/T); offering it under these names would promise that.
        raise ValueError(
            "momentum came with a temperature; together they do not sample p^(1/T): choose one."
        )


def _rms(v: Tensor) -> Tensor:
    """The rms length of the vectors v [..., D]."""
    return v.square().sum(-1).mean().sqrt()


def _bar(steps: int):
    try:
        from tqdm.auto import tqdm  # the library itself does not need it
    except ImportError as missing:
        raise ImportError(
            "progress=True needs tqdm, which is not installed: pip install tqdm."
        ) from missing
    return tqdm(total=steps, unit="step", leave=False)
