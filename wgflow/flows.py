r"""Particles carried by a velocity field, dx/dt = v(x), and the solvers that integrate it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor, draw_device
from wgflow.functionals import Functional
from wgflow.reductions import require_unsharded
from wgflow.trajectory import Trajectory

__all__ = [
    "MALA",
    "Adaptive",
    "Euler",
    "HeavyBall",
    "Heun",
    "Langevin",
    "Solver",
    "flow",
    "integrate",
]


class State(NamedTuple):
    """State of a solver between steps."""

    x: Tensor
    t: float
    dt: float  # of the next step
    previous: Tensor | None = None  # the positions one step earlier


class Solver(ABC):
    """A rule for one time step, as an immutable value. `dt` is the (first) time step."""

    dt: float

    @abstractmethod
    def step(self, state: State, v: Tensor, velocity: Callable[[Tensor, float], Tensor]) -> State:
        """Advance `state` by one step; v = velocity(state.x, state.t) is known already."""

    def __post_init__(self) -> None:
        if not 0 < self.dt < math.inf:
            raise ValueError(
                f"dt = {self.dt!r}; wanted a positive time step such as 0.1. To run backwards, negate the velocity."
            )


@checked_constructor
@dataclass(frozen=True)
class Euler(Solver):
    """x + dt v: one velocity per step, error O(dt). For a displacement field, dt <= 1 is a damped step.

    Args:
        dt: the time step.
    """

    dt: float

    def step(self, state, v, velocity) -> State:
        return State(state.x + state.dt * v, state.t + state.dt, state.dt)


@checked_constructor
@dataclass(frozen=True)
class Heun(Solver):
    """x + dt (v + v') / 2 with v' the velocity after an Euler step: two velocities per step, error O(dt²).

    Args:
        dt: the time step.
    """

    dt: float

    def step(self, state, v, velocity) -> State:
        x, t, dt, _ = state
        return State(x + (0.5 * dt) * (v + velocity(x + dt * v, t + dt)), t + dt, dt)


@checked_constructor
@dataclass(frozen=True)
class Adaptive(Solver):
    """Heun with time steps chosen so that each differs from the Euler step by at most `tolerance`.

    Args:
        dt: the first time step.
        tolerance: the rms difference allowed per step, a length.
    """

    dt: float
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance > 0:
            raise ValueError(
                f"tolerance = {self.tolerance!r}; wanted a positive length, the error allowed per step."
            )

    def step(self, state, v, velocity) -> State:
        require_unsharded("an adaptive time step")  # each process would take its own
        x, t, dt, _ = state
        while True:
            change = (0.5 * dt) * (velocity(x + dt * v, t + dt) - v)
            error = _rms(change).item() / self.tolerance
            # Without any error the step is kept: at rest it would grow until it overflows.
            factor = min(4.0, max(0.1, 0.9 / math.sqrt(error))) if error > 0 else 1.0
            if error <= 1:
                return State(x + dt * v + change, t + dt, dt * factor)
            dt *= factor if math.isfinite(error) else 0.1
            if t + dt == t:
                raise FloatingPointError(
                    f"no step from t = {t:g} is accurate to {self.tolerance:g}; allow a larger tolerance."
                )


@checked_constructor
@dataclass(frozen=True)
class HeavyBall(Solver):
    """x + dt v + β (x - x⁻), x⁻ the position one step earlier: Polyak's momentum (Polyak 1964).

    Args:
        dt: the time step; near rest it acts as a plain Euler step of dt / (1 - β).
        momentum: β in [0, 1).
    """

    dt: float
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"momentum = {self.momentum!r}; wanted 0 <= momentum < 1, such as 0.9."
            )

    def step(self, state, v, velocity) -> State:
        x, t, dt, previous = state
        moved = x + dt * v
        if previous is not None:
            moved = moved + self.momentum * (x - previous)
        return State(moved, t + dt, dt, x)


@checked_constructor
@dataclass(frozen=True)
class Langevin(Solver):
    r"""x + dt v + sqrt(2 T dt) ξ: unadjusted Langevin dynamics, which for v = ∇log p samples p^(1/T), biased by O(dt).

    Args:
        dt: the time step; a length² where v is a score.
        temperature: T >= 0.
        generator: draws the noise ξ; None: torch's default generator.
    """

    dt: float
    temperature: float = 1.0
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature = {self.temperature!r}; wanted T >= 0, 1 to sample from p itself."
            )

    def step(self, state, v, velocity) -> State:
        x, t, dt, _ = state
        device = draw_device(self.generator, x.device)
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=device).to(x)
        return State(x + dt * v + math.sqrt(2 * self.temperature * dt) * noise, t + dt, dt)


@checked_constructor
@dataclass(frozen=True)
class MALA(Solver):
    r"""Langevin dynamics with a Metropolis test of each particle: samples p without bias (Roberts and Tweedie 1996).

    The proposal x + dt v + sqrt(2 dt) ξ is accepted with probability min(1, p(x') q(x | x') / (p(x) q(x' | x))), q its
    density. The velocity of a particle is usually ∇log p there; it may be any function of that particle alone. It may
    not depend on the others, as that of a field whose negatives are the points does: they would not sample p. dt is a
    length², chosen such that a fraction of about 0.57 is accepted.

    Args:
        dt: the time step.
        log_density: log p up to a constant, [..., N, D] -> [..., N].
        generator: draws the noise ξ and the tests; None: torch's default generator.
    """

    dt: float
    log_density: Callable[[Tensor], Tensor]
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def step(self, state, v, velocity) -> State:
        x, t, dt, _ = state
        device = draw_device(self.generator, x.device)
        like = {"generator": self.generator, "dtype": x.dtype, "device": device}
        jump = dt * v + math.sqrt(2 * dt) * torch.randn(x.shape, **like).to(x)
        there = x + jump
        back = velocity(there, t)
        log_ratio = self.log_density(there) - self.log_density(x)
        # log q(x | x') - log q(x' | x), with q(x' | x) = N(x + dt v, 2 dt).
        log_ratio = log_ratio + ((jump - dt * v).square() - (jump + dt * back).square()).sum(-1) / (
            4 * dt
        )
        accepted = torch.rand(x.shape[:-1], **like).to(x).log() < log_ratio
        return State(torch.where(accepted.unsqueeze(-1), there, x), t + dt, dt)


@checked
def flow(
    velocity: Callable[..., Tensor] | Functional,
    x0: Tensor,
    *,
    steps: int,
    solver: Solver = Euler(0.1),
    schedule: Callable[[float], float] | None = None,
    min_speed: float = 0.0,
    callback: Callable[[Tensor, Tensor, float], object] | None = None,
    snapshots: int = 100,
) -> Trajectory:
    r"""Integrate dx/dt = velocity(x) from `x0`.

    Args:
        velocity: [..., N, D] -> [..., N, D], for instance `lambda x: field(x, pos)`; or a functional, whose velocity
            is taken.
        x0: [..., N, D] initial positions.
        steps: the largest number of time steps.
        solver: `Euler`, `Heun`, `Adaptive`, `HeavyBall`, `Langevin` or `MALA`, with the time step.
        schedule: t -> a number; velocity is then called as velocity(x, schedule(t)). With
            `Annealed(1.0, 0.1, over=5.0)`: lambda x, h: drifting_field(x, pos, x, kernel=Gaussian(h)).
        min_speed: stop when the rms speed is at or below it; 0 never does.
        callback: called as (x, v, t) before every step and at the end. A true result stops the flow; inside
            `wgflow.distributed.sharded` it must be the same on every process.
        snapshots: the largest number of positions stored, evenly thinned, the first and last among them.

    Returns:
        A `Trajectory`, without gradients, since it is a simulation and not a loss.

    Raises:
        ValueError: on x0, steps, solver or snapshots, or a velocity whose shape is not that of x.
        FloatingPointError: when the velocity ceases to be finite.
    """
    _check(x0, steps, snapshots)
    if not isinstance(solver, Solver):
        raise ValueError(f"solver is {solver!r}; wanted one such as Euler(0.1) or Adaptive(0.1).")
    if min_speed > 0:
        require_unsharded("a speed at which to stop")
    at = _velocity(velocity, schedule)
    every = math.ceil(steps / (snapshots - 1))
    state, stopped, records = State(x0.detach().clone(), 0.0, solver.dt), "steps", []
    with torch.no_grad():
        for i in range(steps + 1):
            x, t = state.x, state.t
            v = at(x, t)
            _check_velocity(x, v)
            speed = _rms(v)
            if not bool(speed.isfinite()):
                raise FloatingPointError(
                    f"the velocity is not finite at step {i} (t = {t:g}); take a smaller dt or a bounded weight."
                )
            if callback is not None and callback(x, v, t):
                stopped = "callback"
            elif min_speed > 0 and bool(speed <= min_speed):
                stopped = "at rest"
            ended = stopped != "steps" or i == steps
            if ended or i % every == 0:
                records.append((x.clone(), t, speed))
            if ended:
                break
            state = solver.step(state, v, at)
    points, times, speeds = zip(*records, strict=True)
    return Trajectory(
        torch.stack(points),
        torch.tensor(times, dtype=torch.float64, device="cpu"),
        torch.stack(speeds),
        stopped,
    )


@checked
def integrate(
    velocity: Callable[..., Tensor] | Functional,
    x0: Tensor,
    *,
    times: Tensor | Sequence[float],
    rtol: float = 1e-6,
    atol: float = 1e-9,
    schedule: Callable[[float], float] | None = None,
) -> Trajectory:
    r"""Integrate dx/dt = velocity(x) to given times within a tolerance, from `x0` at time 0.

    By the Runge-Kutta method of order 8 with dense output of scipy (`solve_ivp`, DOP853), in float64 on the CPU; the
    velocity is evaluated on the device of x0. For smooth velocities: those of compact kernels and of `EnergyField` have
    kinks, at which steps become short.

    Args:
        velocity: as for `flow`.
        x0: [..., N, D] initial positions. In float32 the velocity carries rounding errors of 1e-7, which no tolerance
            should undercut.
        times: the times of the snapshots, increasing, not negative; the last is the final time.
        rtol: the local error relative to |x|.
        atol: the local error, a length.
        schedule: as for `flow`.

    Returns:
        A `Trajectory` with `stopped="time"`, without gradients.

    Raises:
        ValueError: on x0, times or tolerances.
        FloatingPointError: where the velocity is not finite, or no step is accurate enough.
    """
    _check(x0, 1, 2)
    require_unsharded("an integral within a tolerance")
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach()
    increasing = times.dim() == 1 and times.numel() > 0 and bool((times.diff() > 0).all())
    if not (increasing and times[0] >= 0 and 0 < times[-1] < math.inf):
        raise ValueError(
            f"times are {times.tolist()}; wanted increasing times >= 0, such as [0, 1, 5]."
        )
    if not (0 < rtol < 1 and 0 < atol < math.inf):
        raise ValueError(
            f"rtol = {rtol!r}, atol = {atol!r}; wanted positive tolerances, rtol below 1."
        )
    from scipy.integrate import solve_ivp  # here: it would double the time of `import wgflow`

    at = _velocity(velocity, schedule)

    def rate(t: float, flat: Any) -> Any:
        x = torch.from_numpy(flat).to(x0).view(x0.shape)
        v = at(x, float(t))
        _check_velocity(x, v)
        if not bool(v.isfinite().all()):
            raise FloatingPointError(f"the velocity is not finite at t = {t:g}.")
        return v.detach().double().cpu().flatten().numpy()

    start = x0.detach().double().cpu().flatten().numpy()
    with torch.no_grad():
        solved = solve_ivp(
            rate, (0.0, float(times[-1])), start, "DOP853", times.numpy(), rtol=rtol, atol=atol
        )
        if not solved.success:
            raise FloatingPointError(f"scipy stopped at t = {solved.t[-1]:g}: {solved.message}")
        points = torch.from_numpy(solved.y.T.copy()).to(x0).view(-1, *x0.shape)
        speed = torch.stack([_rms(at(x, float(t))) for x, t in zip(points, times, strict=True)])
    return Trajectory(points, times.clone(), speed, "time")


def _velocity(
    velocity: Callable[..., Tensor] | Functional, schedule: Callable[[float], float] | None
) -> Callable[[Tensor, float], Tensor]:
    """The velocity as a function of points and time."""
    plain: Callable[..., Tensor] = (
        velocity.velocity if isinstance(velocity, Functional) else velocity
    )
    return (lambda x, t: plain(x)) if schedule is None else (lambda x, t: plain(x, schedule(t)))


def _check_velocity(x: Tensor, v: Tensor) -> None:
    if v.shape != x.shape:
        raise ValueError(
            f"velocity gave {list(v.shape)} at points {list(x.shape)}; wanted one vector for each point."
        )


def _check(x0: Tensor, steps: int, snapshots: int) -> None:
    if not x0.is_floating_point() or x0.dim() < 2 or x0.numel() == 0:
        raise ValueError(
            f"x0 is {list(x0.shape)} {x0.dtype}; wanted [..., N, D] of a floating dtype, N >= 1."
        )
    if steps < 1 or snapshots < 2:
        raise ValueError(
            f"steps = {steps}, snapshots = {snapshots}; wanted at least 1 step and 2 snapshots (first and last)."
        )


def _rms(v: Tensor) -> Tensor:
    """The rms length of the vectors v [..., D]."""
    largest = v.abs().amax().clamp_min(torch.finfo(v.dtype).tiny)  # squares overflow, or vanish
    return largest * (v / largest).square().sum(-1).mean().sqrt()
