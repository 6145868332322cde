"""Flows: the order of the integrators, the Gaussian closed forms, and what descends and what does not."""

import cmath
import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.closed_forms import draw, random_gaussian
from tests.strategies import assert_close
from wgflow import (
    KDE,
    MALA,
    MMD,
    Adaptive,
    Annealed,
    BlobKL,
    Euler,
    Gaussian,
    HeavyBall,
    Heun,
    Langevin,
    Trajectory,
    drifting_field,
    energy_field,
    flow,
    integrate,
    mean_shift,
    mmd2,
    sliced_w2,
)
from wgflow.testing import gaussians


def pair(seed: int, dim: int):
    g = torch.Generator().manual_seed(seed)
    return random_gaussian(dim, g), random_gaussian(dim, g), g


@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.2, 2.0))
def test_gaussian_drift_is_the_score_gap_of_the_smoothed_gaussians(seed, dim, h):
    p, q, g = pair(seed, dim)
    x = torch.randn(5, dim, generator=g, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(dim, dtype=torch.float64)
    smooth = [torch.distributions.MultivariateNormal(m, cov + h**2 * eye) for m, cov in (p, q)]
    (gap,) = torch.autograd.grad((smooth[0].log_prob(x) - smooth[1].log_prob(x)).sum(), x)
    assert_close(gaussians.drift(x.detach(), p, q, h=h), h**2 * gap)


@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.2, 2.0))
def test_moments_move_as_the_drift_carries_them(seed, dim, h):
    """dm = E V and dS = Cov(V, x) + Cov(x, V), both exact for a field linear in x."""
    p, (m, S), _ = pair(seed, dim)
    dm, dS = gaussians.moment_flow(p, (m, S), h=h)
    assert_close(dm, gaussians.drift(m, p, (m, S), h=h))
    eye = torch.eye(dim, dtype=torch.float64)
    slope = gaussians.drift(m + eye, p, (m, S), h=h) - gaussians.drift(
        m, p, (m, S), h=h
    )  # rows: dV along each axis
    assert_close(dS, slope.mT @ S + S @ slope)


def test_the_variance_clock_runs_with_the_flow():
    """1-D, equal means: the moments integrated step by step agree with the closed form Phi."""
    p, h, s0 = (torch.zeros(1).double(), torch.tensor([[0.8]]).double()), 0.5, 2.5

    def velocity(s):
        return gaussians.moment_flow(p, (p[0], s), h=h)[1]

    s_t = flow(velocity, torch.tensor([[s0]]).double(), solver=Heun(0.002), steps=1000).end.item()
    expected = gaussians.variance_clock(s0, 0.8, h=h) + 2 * h**2 * 2.0 / (0.8 + h**2)
    assert gaussians.variance_clock(s_t, 0.8, h=h) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1), (Heun, 2)])
def test_the_integrator_has_its_order(kind, order):
    """Linear field of two frozen Gaussians: the exact flow is an exponential; dt / 2 divides the error by 2^order."""
    p, q, g = pair(3, 2)
    x0 = torch.randn(6, 2, generator=g, dtype=torch.float64)
    origin = gaussians.drift(torch.zeros(2).double(), p, q, h=0.8)
    A = torch.stack(
        [gaussians.drift(e, p, q, h=0.8) - origin for e in torch.eye(2).double()]
    )  # row form: V = x A + b
    affine = torch.zeros(3, 3, dtype=torch.float64)
    affine[:2, :2], affine[2, :2] = A, origin
    exact = (torch.cat([x0, torch.ones(6, 1)], -1).double() @ torch.linalg.matrix_exp(affine))[
        :, :2
    ]
    errors = [
        (
            flow(lambda x: gaussians.drift(x, p, q, h=0.8), x0, solver=kind(1 / n), steps=n).end
            - exact
        ).norm()
        for n in (20, 40, 80)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_transport_closed_forms_are_distances(seed, dim):
    p, q, _ = pair(seed, dim)
    for distance in (
        gaussians.w2,
        gaussians.kl,
        lambda a, b: gaussians.mmd2(a, b, h=0.7),
        lambda a, b: gaussians.sinkhorn_divergence(a, b, sigma2=0.3),
    ):
        assert distance(p, p).abs() < 1e-6
        assert distance(p, q) > 1e-4
    assert_close(gaussians.w2(p, q), gaussians.w2(q, p))
    # Without regularisation the entropic cost is W2 squared, up to the entropy term it adds.
    assert_close(
        gaussians.sinkhorn_divergence(p, q, sigma2=1e-6).sqrt(), gaussians.w2(p, q), rtol=1e-3
    )


def test_the_plug_in_drift_can_raise_its_own_divergence():
    """h = 1, q = delta_0, p = .9975 delta_-4 + .0025 delta_1: V(0) > 0 is the wrong way, KL(q_h || p_h) rises."""
    p = torch.tensor([[-4.0], [1.0]], dtype=torch.float64)
    w = torch.tensor([0.9975, 0.0025], dtype=torch.float64)
    grid = torch.linspace(-14, 14, 28001, dtype=torch.float64).unsqueeze(-1)

    def kl(q):
        log_q = -((grid[:, 0] - q) ** 2) / 2 - 0.5 * math.log(2 * math.pi)
        log_p = (-((grid - p.mT) ** 2) / 2 + w.log()).logsumexp(-1) - 0.5 * math.log(2 * math.pi)
        return torch.trapezoid(log_q.exp() * (log_q - log_p), grid[:, 0]).item()

    zero = torch.zeros(1, 1, dtype=torch.float64)
    V = drifting_field(zero, p, zero, kernel=Gaussian(1.0), pos_weights=w).item()
    assert pytest.approx(0.09608, abs=1e-5) == V
    assert kl(0.0) == pytest.approx(5.041226, abs=1e-6)
    assert kl(0.01 * V) == pytest.approx(5.042129, abs=1e-6)


def test_self_excluding_groups_expand_without_bound():
    """One positive, particles leaving themselves out: V_i = y - (the others), gaps grow as exp(t); else they do not."""
    x0 = torch.tensor([[0.5], [0.6]], dtype=torch.float64)
    y = torch.zeros(1, 1, dtype=torch.float64)
    runs = [
        flow(
            lambda x, s=s: drifting_field(x, y, x, kernel=Gaussian(0.3), skip_self=s),
            x0,
            solver=Euler(0.01),
            steps=1000,
        ).end
        for s in (True, False)
    ]
    assert (runs[0][1] - runs[0][0]).item() == pytest.approx(0.1 * math.exp(10), rel=0.1)
    assert runs[1].abs().max() < 1


def test_mean_shift_flow_ends_at_rest_on_a_mode():
    y = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]], dtype=torch.float64)
    path = flow(
        lambda x: mean_shift(x, y, kernel=Gaussian(0.5)),
        y[:1] + 0.3,
        solver=Euler(1.0),
        steps=500,
        min_speed=1e-10,
    )
    assert path.stopped == "at rest"
    assert len(path) < 100
    assert_close(path.end, torch.tensor([[0.05, 0.0]], dtype=torch.float64), atol=1e-6)


def test_a_trajectory_is_thinned_and_keeps_both_ends():
    x0 = torch.zeros(3, 2)
    path = flow(torch.ones_like, x0, steps=1000, snapshots=11)
    assert len(path) == 11
    assert path.times[0] == 0
    assert path.times[-1] == pytest.approx(100.0)
    assert_close(path.points[0], x0)
    assert_close(path.end, torch.full((3, 2), 100.0), rtol=1e-4)
    assert_close(path.speed, torch.full((11,), math.sqrt(2)), rtol=1e-6)


def test_a_flow_stops_when_its_callback_is_true():
    path = flow(
        torch.ones_like, torch.zeros(1, 1), steps=100, callback=lambda x, v, t: x.max() > 0.45
    )
    assert path.stopped == "callback"
    assert path.end.item() == pytest.approx(0.5)


def test_an_adaptive_flow_keeps_its_accuracy_with_fewer_steps():
    """A stiff linear field, rates 1 and 200: steps grow once the fast direction rests."""
    rates = torch.tensor([1.0, 200.0], dtype=torch.float64)
    x0, seen = torch.ones(1, 2, dtype=torch.float64), []
    path = flow(
        lambda x: seen.append(1) or -rates * x,
        x0,
        solver=Adaptive(1e-4, tolerance=1e-5),
        steps=5000,
        callback=lambda x, v, t: t > 1.0,
    )
    exact = (-rates * path.times[-1]).exp()
    assert (path.end[0] - exact).abs().max() < 1e-3
    assert path.stopped == "callback"
    assert len(seen) < 2000  # dt = 1e-4 throughout would take 20,000
    steps = path.times.diff()
    assert steps[-2] > 5 * steps[0]


def test_langevin_has_its_stationary_variance():
    """Ornstein-Uhlenbeck by Euler: variance T s² / (1 - dt / 2s²), the exact law of the discrete chain."""
    g = torch.Generator().manual_seed(0)
    x0, s2, dt, T = torch.zeros(100_000, 1, dtype=torch.float64), 0.5, 0.1, 2.0
    solver = Langevin(dt, temperature=T, generator=g)
    path = flow(lambda x: -x / s2, x0, solver=solver, steps=60, snapshots=2)
    assert path.end.var().item() == pytest.approx(T * s2 / (1 - dt / (2 * s2)), rel=0.02)


def test_langevin_is_repeated_by_its_generator():
    score = KDE(torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), Gaussian(1.0)).score
    runs = [
        flow(
            score,
            torch.zeros(4, 2),
            solver=Langevin(0.1, generator=torch.Generator().manual_seed(3)),
            steps=5,
        ).end
        for _ in range(2)
    ]
    assert torch.equal(*runs)


def test_a_scheduled_velocity_sees_the_clock():
    """dx/dt = 2t: Heun is exact for it; the clock is a schedule like any other."""
    path = flow(
        lambda x, t: torch.full_like(x, 2 * t),
        torch.zeros(1, 1).double(),
        solver=Heun(0.1),
        steps=10,
        schedule=lambda t: t,
    )
    assert path.end.item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [Euler, Heun])
def test_the_bandwidth_seen_at_each_step_is_the_scheduled_one(kind):
    """Annealed: h(t) = start (end / start)^(t / over), at the times of the velocities, of which Heun has two a step."""
    seen, schedule = [], Annealed(2.0, 0.5, over=0.6)
    y = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def velocity(x, h):
        seen.append(h)
        return mean_shift(x, y, kernel=Gaussian(h))

    flow(velocity, y + 1, solver=kind(0.1), steps=8, schedule=schedule)
    at = [0.1 * k for k in range(9)]
    if kind is Heun:
        at = [t for k in range(8) for t in (0.1 * k, 0.1 * (k + 1))] + [0.8]
    assert seen == pytest.approx([2.0 * 0.25 ** min(t / 0.6, 1.0) for t in at])
    assert schedule(0.3) == pytest.approx(1.0)
    assert Annealed(1.0, 1.0, over=1.0)(7.0) == 1.0


@given(st.floats(0.05, 0.95), st.floats(0.05, 1.5))
def test_momentum_is_the_heavy_ball_on_a_quadratic(beta, rate):
    """dx/dt = -rate x: x_k = a r1^k + b r2^k, r the roots of r² - (1 + β - dt rate) r + β, from rest at x_0 = 1."""
    dt, steps = 0.7, 30
    path = flow(
        lambda x: -rate * x,
        torch.ones(1, 1).double(),
        solver=HeavyBall(dt, beta),
        steps=steps,
        snapshots=steps + 1,
    )
    half = (1 + beta - dt * rate) / 2
    root = cmath.sqrt(half**2 - beta)
    assume(abs(root) > 1e-3)  # at a double root the closed form is another one
    r1, r2 = half + root, half - root
    b = (1 - dt * rate - r1) / (r2 - r1)  # x_0 = 1 and x_1 = 1 - dt rate
    exact = [((1 - b) * r1**k + b * r2**k).real for k in range(steps + 1)]
    assert_close(
        path.points.flatten(), torch.tensor(exact, dtype=torch.float64), rtol=1e-6, atol=1e-7
    )


def test_langevin_without_temperature_and_a_ball_without_momentum_are_euler():
    x0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    runs = [
        flow(lambda x: -x, x0, solver=solver, steps=5).end
        for solver in (Euler(0.1), Langevin(0.1, temperature=0.0), HeavyBall(0.1, momentum=0.0))
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_functional_flows_along_its_velocity():
    g = torch.Generator().manual_seed(0)
    F, x0 = MMD(torch.randn(6, 2, generator=g), Gaussian(1.0)), torch.randn(5, 2, generator=g)
    assert torch.equal(flow(F, x0, steps=4).end, flow(F.velocity, x0, steps=4).end)


def test_solvers_and_trajectories_are_printed_briefly():
    assert repr(Adaptive(0.1)) == "Adaptive(dt=0.1, tolerance=0.001)"
    assert Langevin(0.1, generator=torch.Generator()) == Langevin(0.1)
    path = flow(torch.ones_like, torch.zeros(3, 2), steps=4)
    assert repr(path) == "Trajectory(5 snapshots of [3, 2], t = 0 to 0.4, stopped='steps')"


def test_a_callback_sees_every_step():
    seen = []
    path = flow(
        lambda x: -x,
        torch.ones(2, 1),
        solver=Euler(0.5),
        steps=4,
        callback=lambda x, v, t: seen.append((t, x, v)),
    )
    assert [t for t, _, _ in seen] == [0.0, 0.5, 1.0, 1.5, 2.0]
    for (_, x, v), kept in zip(seen, path.points, strict=True):
        assert torch.equal(x, kept)
        assert torch.equal(v, -x)


@pytest.mark.parametrize(
    ("dtype", "speed"),
    [(torch.float16, 1e-5), (torch.float16, 4e4), (torch.float32, 1e-30), (torch.float32, 1e30)],
)
def test_speeds_whose_squares_no_number_holds_are_known(dtype, speed):
    velocity = lambda x: torch.tensor([speed, 0.0]).to(x).expand_as(x)
    path = flow(velocity, torch.zeros(3, 2, dtype=dtype), steps=2, min_speed=speed / 2)
    assert path.stopped == "steps"
    assert_close(path.speed, torch.full_like(path.speed, speed))


@pytest.mark.parametrize("name", ["run", "é" * 120])
def test_a_trajectory_is_saved_and_read_back(name, tmp_path):
    path = flow(torch.ones_like, torch.zeros(3, 2), steps=4)
    back = Trajectory.load(path.save(tmp_path / name))
    assert (tmp_path / f"{name}.npz").exists()
    assert_close(back.points, path.points)
    assert_close(back.times, path.times)
    assert back.stopped == path.stopped


def test_a_flow_runs_over_batches():
    g = torch.Generator().manual_seed(0)
    x0, data = torch.randn(4, 6, 2, generator=g), torch.randn(4, 3, 2, generator=g)
    together = flow(lambda x: energy_field(x, data), x0, steps=20).end
    alone = flow(lambda x: energy_field(x, data[2]), x0[2], steps=20).end
    assert_close(together[2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("error", "says", "call"),
    [
        (ValueError, "dt", lambda x: Euler(0.0)),
        (ValueError, "dt", lambda x: Heun(math.nan)),
        (ValueError, "tolerance", lambda x: Adaptive(0.1, tolerance=0.0)),
        (ValueError, "momentum", lambda x: HeavyBall(0.1, momentum=1.0)),
        (ValueError, "temperature", lambda x: Langevin(0.1, temperature=-1.0)),
        (ValueError, "steps", lambda x: flow(torch.ones_like, x, steps=0)),
        (ValueError, "solver is 'magic'", lambda x: flow(torch.ones_like, x, steps=3, solver="magic")),
        (ValueError, "x0 is", lambda x: flow(torch.ones_like, x[:0], steps=3)),
        (ValueError, "x0 is", lambda x: flow(torch.ones_like, x.long(), steps=3)),
        (ValueError, "velocity gave", lambda x: flow(lambda x: x.sum(0), x, steps=3)),
        (ValueError, "over", lambda x: Annealed(1.0, 0.1, over=0.0)),
        (ValueError, "end", lambda x: Annealed(1.0, -0.1, over=1.0)),
        (FloatingPointError, "step 0", lambda x: flow(lambda x: x / 0, x, steps=3)),
    ],
)  # fmt: skip
def test_bad_flows_are_named(error, says, call):
    with pytest.raises(error, match=says):
        call(torch.zeros(2, 2))


def test_closed_forms_agree_with_samples():
    p, q, g = pair(5, 2)
    x, y = draw(p, 4000, g), draw(q, 4000, g)
    assert mmd2(x, y, kernel=Gaussian(0.7)).item() == pytest.approx(
        gaussians.mmd2(p, q, h=0.7).item(), abs=0.01
    )
    assert sliced_w2(x, y, generator=g) <= gaussians.w2(p, q) + 0.05


def test_an_adaptive_flow_of_nothing_ends():
    """No error, so nothing bounds a step that grows: it must not overflow."""
    x = torch.ones(2, 1, dtype=torch.float64)
    run = flow(torch.zeros_like, x, solver=Adaptive(0.1), steps=600)
    assert (run.end == x).all()
    assert run.times.isfinite().all()


def test_integration_ends_at_its_times_within_its_tolerance():
    """dx/dt = -A x: the matrix exponential; and with a clock, dx/dt = -x cos t: exp(-sin t)."""
    g = torch.Generator().manual_seed(0)
    A = torch.randn(3, 3, generator=g, dtype=torch.float64)
    x0, times = torch.randn(2, 5, 3, generator=g, dtype=torch.float64), [0.0, 0.3, 1.0, 2.5]
    path = integrate(lambda x: -x @ A.mT, x0, times=times, rtol=1e-9, atol=1e-12)
    exact = torch.stack([x0 @ torch.linalg.matrix_exp(-t * A).mT for t in times])
    assert_close(path.points, exact, rtol=1e-6, atol=1e-7)
    assert (path.times.tolist(), path.stopped) == (times, "time")
    clocked = integrate(lambda x, c: -c * x, x0, times=[4.0], schedule=math.cos, rtol=1e-9)
    assert_close(clocked.end, x0 * math.exp(-math.sin(4.0)), rtol=1e-6, atol=1e-7)


def test_integration_is_the_limit_of_the_flow():
    y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    F, x0 = BlobKL(KDE(y, Gaussian(0.7)), Gaussian(0.7)), 0.3 * y[:5]
    stepped = flow(F, x0, solver=Heun(0.01), steps=100).end
    assert_close(integrate(F, x0, times=[1.0]).end, stepped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("error", "says", "call"),
    [
        (ValueError, "increasing", lambda x: integrate(lambda x: -x, x, times=[1.0, 0.5])),
        (ValueError, "increasing", lambda x: integrate(lambda x: -x, x, times=[0.0])),
        (ValueError, "tolerances", lambda x: integrate(lambda x: -x, x, times=[1.0], rtol=0.0)),
        (ValueError, "one vector", lambda x: integrate(lambda x: x.sum(-1), x, times=[1.0])),
        (FloatingPointError, "not finite", lambda x: integrate(lambda x: x / 0, x, times=[1.0])),
    ],
)  # fmt: skip
def test_bad_integrations_are_named(error, says, call):
    with pytest.raises(error, match=says):
        call(torch.randn(3, 2))


def test_mala_keeps_its_density_at_a_step_at_which_langevin_does_not():
    """N(0, 1), dt = 1: unadjusted Langevin has the variance 1 / (1 - dt / 2) = 2 of its own chain."""
    x0 = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seeded = lambda: torch.Generator().manual_seed(1)
    exact = MALA(1.0, lambda x: -x.square().sum(-1) / 2, generator=seeded())
    kept = flow(lambda x: -x, x0, solver=exact, steps=30).end
    assert kept.var().item() == pytest.approx(1.0, abs=0.04)
    assert kept.square().square().mean().item() == pytest.approx(3.0, abs=0.3)
    biased = flow(lambda x: -x, x0, solver=Langevin(1.0, generator=seeded()), steps=30).end
    assert biased.var().item() == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_trajectory_keeps_its_dtype_in_a_file(dtype, tmp_path):
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    path = flow(lambda x: -x, x, steps=2)
    back = Trajectory.load(path.save(tmp_path / "run"))
    assert torch.equal(back.points, path.points)
    assert torch.equal(back.speed, path.speed)
    assert_close(back.times, path.times)
    assert back.stopped == path.stopped
    assert back.points.dtype == dtype


def test_a_failed_save_leaves_the_good_file(tmp_path, monkeypatch):
    path = flow(lambda x: -x, torch.ones(4, 2), steps=2)
    saved = path.save(tmp_path / "run.npz")
    before = saved.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        path.save(saved)
    assert [f.name for f in tmp_path.iterdir()] == ["run.npz"]
    assert saved.read_bytes() == before
