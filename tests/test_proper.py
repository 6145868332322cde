"""Fields for one positive: which are linear in it, the same at any number of points, and at rest at the truth."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from tests.strategies import assert_close, clouds
from wgflow import (
    Alpha,
    ChiSquare,
    EnergyDistance,
    ForwardKL,
    Gaussian,
    Hellinger,
    JensenShannon,
    Laplace,
    Matern,
    RationalQuadratic,
    ReverseKL,
    SkewKL,
    biweight,
    drifting_field,
    energy_field,
    epanechnikov,
    flat,
    likelihood_field,
    mmd_field,
    published_field,
)
from wgflow.kernels import Scaled

betas = st.sampled_from([0.25, 0.5, 1.0, 1.5, 1.9])


def powered_score(x, pos, weights, beta):
    """Σ w |x-y|^β / Σ w - mean_{i≠j} |x_i-x_j|^β / 2, a number at a time: x [N, D], pos [P, D]."""
    n, total = len(x), 0.0
    for i in range(n):
        for y, w in zip(pos, weights / weights.sum(), strict=True):
            total = total + w * (x[i] - y).square().sum() ** (beta / 2) / n
        for j in range(n):
            if j != i:
                total = total - (x[i] - x[j]).square().sum() ** (beta / 2) / (2 * n * (n - 1))
    return total


@given(clouds(batch=False, degenerate=False), betas)
def test_the_energy_field_of_any_exponent_is_the_gradient_of_its_score(c, beta):
    """V_i = -N ∇_i of the U-statistic written out, weights included, by autograd."""
    x = c.x.requires_grad_()
    (grad,) = torch.autograd.grad(powered_score(x, c.pos, c.wp, beta), x)
    V = energy_field(x, c.pos, beta=beta, pos_weights=c.wp).detach()
    assert_close(V, -len(x) * grad, rtol=1e-8, atol=1e-8)


@given(clouds(degenerate=False), betas)
def test_the_energy_distance_of_any_exponent_is_a_functional_of_its_field(c, beta):
    """Its value by finite differences along a direction, in any batch: factor dF = -(1/N) Σ_i V_i · dx_i."""
    F, along, dt = EnergyDistance(c.pos, beta), c.rand(*c.x.shape), 1e-7
    rate = (F.value(c.x + dt * along) - F.value(c.x - dt * along)) / (2 * dt)
    work = (F.velocity(c.x) * along).sum((-2, -1)) / c.x.shape[-2]
    assert_close(F.factor * rate, -work, rtol=1e-4, atol=1e-5)
    weights = torch.full_like(c.wp, 3.0)
    assert_close(F.velocity(c.x), energy_field(c.x, c.pos, beta=beta, pos_weights=weights))


@given(clouds(degenerate=False), betas, st.floats(0.01, 100.0))
def test_the_energy_field_has_the_units_of_its_exponent(c, beta, unit):
    V = energy_field(c.x, c.pos, c.neg, beta=beta)
    assert_close(
        energy_field(unit * c.x, unit * c.pos, unit * c.neg, beta=beta), unit ** (beta - 1) * V
    )


@given(clouds(degenerate=False))
def test_the_exponent_one_is_the_default(c):
    assert torch.equal(energy_field(c.x, c.pos, beta=1.0), energy_field(c.x, c.pos))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 1.5])
def test_coincident_points_pull_nothing_under_any_exponent(beta, dtype):
    """The slope r^(β-1) has no limit at 0 below 1; there the pull is zero, and its gradient finite."""
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    V = energy_field(x, torch.zeros(1, 2, dtype=dtype), beta=beta)
    assert_close(V[:, 1].detach(), torch.zeros_like(V[:, 1]))
    # The pair at 0 feels only the third point, which is pulled to the positive and pushed by the pair, and rests.
    expected = torch.tensor([-beta / 2, -beta / 2, 0.0], dtype=dtype)
    assert_close(V[:, 0].detach(), expected, atol=1e-6)
    (grad,) = torch.autograd.grad(V.square().sum(), x)
    assert grad.isfinite().all()
    assert EnergyDistance(torch.zeros(1, 2, dtype=dtype), beta).value(x.detach()).isfinite()


@pytest.mark.parametrize("beta", [0.0, 2.0, -1.0, float("nan")])
def test_an_exponent_that_is_not_proper_is_refused(beta):
    x = torch.zeros(2, 1)
    for call in (lambda: energy_field(x, x, beta=beta), lambda: EnergyDistance(x, beta)):
        with pytest.raises(ValueError, match="beta = .*0 < beta < 2"):
            call()


# -- one positive: linear in p, and the same at any number of points --------------------------------------------------

LINEAR = {
    "energy_field": energy_field,
    "energy_field, beta": lambda x, y, **w: energy_field(x, y, beta=0.5, **w),
    "mmd_field": lambda x, y, **w: mmd_field(x, y, kernel=[Laplace(0.5), Gaussian(2.0)], **w),
    "likelihood_field": lambda x, y, **w: likelihood_field(x, y, kernel=Gaussian(0.8), **w),
    "drifting_field, forward KL": lambda x, y, **w: drifting_field(
        x, y, x, kernel=Gaussian(0.8), divergence=ForwardKL(), **w
    ),
}
OTHERS = {
    f"drifting_field, {divergence}": lambda x, y, d=divergence, **w: drifting_field(
        x, y, x, kernel=Gaussian(0.8), divergence=d, **w
    )
    for divergence in (
        ReverseKL(),
        JensenShannon(),
        SkewKL(),
        ChiSquare(),
        Hellinger(),
        Alpha(-0.5),
        Alpha(2.0),
    )
}
OTHERS["published_field"] = lambda x, y, **w: published_field(x, y, temperatures=(0.2,), **w)


def gap_to_linear(field, x, y, w):
    """|V(Σ w_k δ_k) - Σ w_k V(δ_k)|: 0 for a field that minibatches of one positive leave unbiased."""
    singles = torch.stack([field(x, y[k : k + 1]) for k in range(len(y))])
    return (field(x, y, pos_weights=w) - torch.einsum("k,kid->id", w, singles)).abs().max().item()


@pytest.mark.parametrize("name", LINEAR)
@given(clouds(batch=False, degenerate=False))
def test_a_field_for_one_positive_is_linear_in_their_law(name, c):
    assert gap_to_linear(LINEAR[name], c.x, c.pos, c.wp / c.wp.sum()) < 1e-9


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_fields_are_not_linear_in_the_law_of_positives(name):
    x, y, w = torch.tensor([[-0.5], [0.7]]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.7, 0.3])
    assert gap_to_linear(OTHERS[name], x, y, w) > 0.05


@given(clouds(degenerate=False))
def test_with_one_positive_the_weight_of_forward_kl_is_at_most_the_number_of_points(c):
    """p_h / q_h = k(x_i, y) / mean_j k(x_i, x_j) <= G, the point itself being among the j."""
    sizes = [
        drifting_field(
            c.x, c.pos[..., :1, :], c.x, kernel=Gaussian(c.h), divergence=divergence
        ).norm(dim=-1)
        for divergence in (ForwardKL(), ReverseKL())
    ]
    assert (sizes[0] <= c.x.shape[-2] * sizes[1] * (1 + 1e-9)).all()


ATOMS = torch.tensor([[0.0, 0.0], [1.0, 0.3], [-0.4, 1.1]], dtype=torch.float64)
Q, P = (
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64),
)


def every_group(points):
    """All groups of so many independent draws from Q, [3^G, G, 2], and their probabilities."""
    index = torch.tensor(list(itertools.product(range(len(Q)), repeat=points)))
    return ATOMS[index], Q[index].prod(-1), index


@pytest.mark.parametrize("points", [2, 3, 5])
@pytest.mark.parametrize("name", ["energy_field", "energy_field, beta", "mmd_field"])
def test_a_kernel_score_has_the_same_expected_field_at_any_number_of_points(name, points):
    """E[V_1 | x_1], one positive, by enumeration: the field of the whole law q against the whole law p."""
    groups, chance, index = every_group(points)
    V = sum(
        P[k] * LINEAR[name](groups, ATOMS[k : k + 1].expand(len(groups), 1, 2))[:, 0]
        for k in range(3)
    )
    field = {
        "energy_field": energy_field,
        "energy_field, beta": lambda *a, **w: energy_field(*a, beta=0.5, **w),
        "mmd_field": lambda *a, **w: mmd_field(*a, kernel=[Laplace(0.5), Gaussian(2.0)], **w),
    }[name]
    population = field(ATOMS, ATOMS, ATOMS, pos_weights=P, neg_weights=Q)
    for atom in range(3):
        here = index[:, 0] == atom
        assert_close((chance[here, None] * V[here]).sum(0) / Q[atom], population[atom])


@pytest.mark.parametrize("points", [2, 4])
def test_the_push_takes_away_the_noise_that_the_point_itself_decides(points):
    """At q = p: E|V_1|² = G/(G-1) E Var(pull | x_1), less than G/(G-1) E|pull|²; by enumeration."""
    groups, chance, _ = every_group(points)
    V = [energy_field(groups, ATOMS[k : k + 1].expand(len(groups), 1, 2))[:, 0] for k in range(3)]
    total = sum(Q[k] * (chance @ V[k].square().sum(-1)) for k in range(3))
    apart = ATOMS[None] - ATOMS[:, None]
    pull = torch.nn.functional.normalize(apart, dim=-1)
    of_one = Q @ (pull.square().sum(-1) @ Q)
    decided = Q @ torch.einsum("k,ikd->id", Q, pull).square().sum(-1)
    assert total.item() == pytest.approx(
        points / (points - 1) * (of_one - decided).item(), rel=1e-9
    )


@given(st.integers(0, 2**31))
def test_a_proper_score_of_degree_two_has_a_quadratic_entropy(seed):
    """S = H + DH[δ_y - q] for a cubic H: along any contrast v, S has -2 times the third derivative of H."""
    H = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    entropy = lambda q: torch.einsum("ijk,i,j,k->", H, q, q, q)
    v = P - Q

    def score(t, y):
        q = Q + t * v
        along = torch.autograd.functional.jvp(entropy, q, torch.eye(3, dtype=torch.float64)[y] - q)[
            1
        ]
        return entropy(q) + along

    third = lambda f: f(1.5) - 3 * f(0.5) + 3 * f(-0.5) - f(-1.5)
    of_entropy = third(lambda t: entropy(Q + t * v))
    for y in range(3):
        assert_close(third(lambda t, y=y: score(t, y)), -2 * of_entropy)


def test_the_likelihood_has_another_expected_field_at_another_number_of_points():
    fields = []
    for points in (2, 5):
        groups, chance, index = every_group(points)
        here = index[:, 0] == 0
        V = (
            points
            * likelihood_field(groups, ATOMS[1:2].expand(len(groups), 1, 2), kernel=Gaussian(0.4))[
                :, 0
            ]
        )
        fields.append((chance[here, None] * V[here]).sum(0) / Q[0])
    assert (fields[0] - fields[1]).norm() > 0.2 * fields[1].norm()


# -- kernel scores ----------------------------------------------------------------------------------------------------

DEFINITE = [
    Gaussian(0.7),
    Laplace(0.7),
    Matern(0.7, 1.5),
    RationalQuadratic(0.7, 0.3),
    RationalQuadratic(0.7, 2.0),
]


def contrast(c):
    """Two laws on the same atoms: q - p, which sums to zero. Atoms as [N, D]."""
    weights = torch.stack([c.rand(len(c.x)).softmax(0), c.rand(len(c.x)).softmax(0)])
    return weights[1] - weights[0]


@pytest.mark.parametrize("kernel", DEFINITE, ids=str)
@given(clouds(batch=False, degenerate=False))
def test_a_characteristic_kernel_is_strictly_proper(kernel, c):
    """L(q) - L(p) = MMD²(p, q) / 2 > 0."""
    gap = contrast(c)
    assert 0.5 * gap @ kernel.log_pairs(c.x, c.x).exp() @ gap > 0


@given(clouds(batch=False, degenerate=False), betas)
def test_the_energy_score_is_strictly_proper_for_every_exponent_below_two(c, beta):
    gap = contrast(c)
    assert -0.5 * gap @ torch.cdist(c.x, c.x).pow(beta) @ gap > 0


@given(clouds(batch=False, degenerate=False))
def test_the_exponent_two_sees_means_alone(c):
    """-Σ (q-p)(q-p) |x-x'|² / 2 = |mean q - mean p|²."""
    gap = contrast(c)
    distance = torch.cdist(c.x, c.x, compute_mode="donot_use_mm_for_euclid_dist")
    assert_close(-0.5 * gap @ distance.square() @ gap, (gap @ c.x).square().sum())


@pytest.mark.parametrize("make", [flat, epanechnikov, biweight])
def test_a_compact_kernel_prefers_another_law_to_the_truth(make):
    """Its Fourier transform changes sign, so there are p, q with L(q) < L(p): atoms on a line, so in any dimension."""
    grid = torch.linspace(0, 6, 49, dtype=torch.float64)[:, None]
    gram = make(1.0).log_pairs(grid, grid).exp()
    centred = torch.eye(49, dtype=torch.float64) - 1 / 49
    values, vectors = torch.linalg.eigh(centred @ gram @ centred)
    assert values[0] < -1e-3
    p = torch.full((49,), 1 / 49, dtype=torch.float64)
    q = p + vectors[:, 0] / 49
    assert q.min() > 0
    loss = lambda law: 0.5 * law @ gram @ law - p @ gram @ law
    assert loss(q) < loss(p) - 1e-7
    definite = torch.linalg.eigvalsh(centred @ Laplace(1.0).log_pairs(grid, grid).exp() @ centred)
    assert definite[0] > -1e-12


@pytest.mark.parametrize(
    ("kernel", "W"),
    [
        (Gaussian(0.7), lambda w, D: math.exp(-((0.7 * w) ** 2) / 2)),
        (Laplace(0.7), lambda w, D: (1 + (0.7 * w) ** 2) ** (-(D + 1) / 2)),
        (Matern(0.7, 1.5), lambda w, D: (1 + (0.7 * w) ** 2 / 3) ** (-(1.5 + D / 2))),
        (Matern(0.7, 2.5), lambda w, D: (1 + (0.7 * w) ** 2 / 5) ** (-(2.5 + D / 2))),
    ],
    ids=lambda value: "W" if hasattr(value, "__code__") else str(value),
)
@pytest.mark.parametrize("r", [0.3, 1.3])
def test_a_kernel_is_the_transform_of_its_row_of_the_table(kernel, W, r):
    """k(r) / k(0) = ∫ W cos(ωr) / ∫ W on the line, and ∫ W ω sin(ωr) / (r ∫ W ω²) in space."""
    k = kernel.log(torch.tensor(r * r, dtype=torch.float64)).exp().item()
    line = integrate.quad(lambda w: W(w, 1), 0, math.inf, weight="cos", wvar=r)[0]
    assert line / integrate.quad(lambda w: W(w, 1), 0, math.inf)[0] == pytest.approx(k, rel=1e-6)
    space = integrate.quad(lambda w: W(w, 3) * w, 0, math.inf, weight="sin", wvar=r)[0] / r
    assert space / integrate.quad(lambda w: W(w, 3) * w * w, 0, math.inf)[0] == pytest.approx(
        k, rel=1e-6
    )


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("a", [0.3, 1.3])
def test_the_energy_distance_weighs_frequencies_by_their_power(beta, a):
    """2 a^β = C⁻¹ ∫ |1 - exp(iωa)|² |ω|^-(1+β) dω for two atoms at distance a (Székely, Rizzo)."""
    C = (
        2
        * math.sqrt(math.pi)
        * math.gamma(1 - beta / 2)
        / (beta * 2**beta * math.gamma((1 + beta) / 2))
    )
    tail = lambda w: 2 * w ** (-1 - beta)
    low = integrate.quad(lambda w: tail(w) * (1 - math.cos(w * a)), 0, 50, limit=400)[0]
    high = tail(50) * 50 / beta - integrate.quad(tail, 50, math.inf, weight="cos", wvar=a)[0]
    assert 2 * (low + high) / C == pytest.approx(2 * a**beta, rel=1e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
def test_the_energy_field_is_a_ladder_of_gaussians(beta):
    """r^β = c ∫ (1 - exp(-r²/2h²)) h^(β-1) dh: all bandwidths at once, each weighed by h^β."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (4, 1))
    ratio, c = 1.5, 2 ** (beta / 2) * beta / math.gamma(1 - beta / 2)
    ladder = [ratio**j for j in range(-40, 50)]
    kernels = [Scaled(Gaussian(h), math.log(c * math.log(ratio) * h**beta)) for h in ladder]
    assert_close(
        mmd_field(x, y, kernel=kernels), energy_field(x, y, beta=beta), rtol=1e-3, atol=1e-4
    )


@given(clouds(degenerate=False), betas, st.floats(0.01, 1.0))
def test_a_detail_counts_by_its_size_to_the_power_of_the_exponent(c, beta, size):
    """Shrink two clouds: their score shrinks by size^β, so a small β prices fine detail almost as coarse."""
    shrunk = EnergyDistance(size * c.pos, beta).value(size * c.x)
    assert_close(shrunk, size**beta * EnergyDistance(c.pos, beta).value(c.x))


def mean_power(distance, variance, beta, dim):
    """E|N(m, v I)|^β at |m| = distance."""
    ratio = math.gamma((dim + beta) / 2) / math.gamma(dim / 2)
    return (
        (2 * variance) ** (beta / 2)
        * ratio
        * special.hyp1f1(-beta / 2, dim / 2, -(distance**2) / (2 * variance))
    )


@pytest.mark.parametrize(
    ("beta", "share"), [(0.25, 0.070), (0.5, 0.059), (1.0, 0.030), (1.5, 0.012)]
)
@pytest.mark.parametrize(("dim", "within"), [(1, 6e-4), (2, 6e-3), (25, 6e-3)])
def test_a_doubled_width_costs_as_much_as_a_wrong_share(beta, share, dim, within):
    """Two modes of rms radius 1/50 at distance 1 made twice as wide, priced in shares δ: MMD² = 2 δ²."""
    between = lambda v: (mean_power(0, v, beta, dim) + mean_power(1, v, beta, dim)) / 2
    narrow, wide = 0.02**2 / dim, 0.04**2 / dim
    mmd2 = 2 * between(narrow + wide) - between(2 * narrow) - between(2 * wide)
    assert math.sqrt(mmd2 / 2) == pytest.approx(share, abs=within)


@pytest.mark.parametrize(
    ("beta", "dim"), [(0.75, 1), (1.0, 1), (1.5, 1), (0.5, 2), (0.25, 25), (1.0, 25), (1.5, 25)]
)
def test_the_noise_of_one_pull_has_its_closed_form(beta, dim):
    """For x, y ~ N(0, I): E|pull|² and the mean pull -c m of a cloud shifted by m, with ν² = E|pull|² / (D c²)."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100_000, 1, dim, generator=g, dtype=torch.float64) for _ in range(2))
    pull = energy_field(x, y, x, beta=beta)[:, 0]  # a lone point does not push itself
    lg = math.lgamma
    second = beta**2 * 4 ** (beta - 1) * math.exp(lg(dim / 2 + beta - 1) - lg(dim / 2))
    # Stein: E d pull / d mean = -E pull (y - x) / 2, y - x ~ N(0, 2I).
    c = (pull * (y - x)[:, 0]).sum(-1).mean().item() / (2 * dim)
    stiffness = 2 * beta / dim * 4 ** (beta / 2 - 1) * math.exp(lg((dim + beta) / 2) - lg(dim / 2))
    assert c == pytest.approx(stiffness, rel=0.01)
    assert pull.square().sum(-1).mean().item() == pytest.approx(second, rel=0.06)
    noise = dim * math.exp(lg(dim / 2 + beta - 1) + lg(dim / 2) - 2 * lg((dim + beta) / 2))
    assert second / (dim * c**2) == pytest.approx(noise, rel=0.02)


def noise(pull, dim):
    """ν = sqrt(4 D E pull²) / E[pull r], pull a function of r = |y - x|, x, y ~ N(0, I), by quadrature; and E r."""
    log_c = math.log(2) - math.lgamma(dim / 2) - dim / 2 * math.log(4)
    law = lambda r: math.exp(log_c + (dim - 1) * math.log(r) - r * r / 4)
    mean = lambda f: integrate.quad(
        lambda r: law(r) * f(r),
        1e-12,
        math.sqrt(2 * dim) + 14,
        points=[math.sqrt(2 * dim)],
        limit=400,
    )[0]
    return math.sqrt(4 * dim * mean(lambda r: pull(r) ** 2)) / mean(lambda r: pull(r) * r), mean(
        lambda r: r
    )


@pytest.mark.parametrize(
    ("dim", "table"),
    [
        (1, {0.75: 2.33, 1.0: 1.77, 1.5: 1.47}),
        (2, {0.25: 2.86, 0.5: 2.08, 0.75: 1.76, 1.0: 1.60, 1.5: 1.45}),
        (25, {0.25: 1.46, 0.5: 1.45, 0.75: 1.44, 1.0: 1.43, 1.5: 1.42}),
    ],
)
def test_a_small_exponent_is_noisy_on_few_dimensions(dim, table):
    for beta, expected in table.items():
        measured, _ = noise(lambda r, beta=beta: r ** (beta - 1), dim)
        assert measured == pytest.approx(expected, abs=5.1e-3)


def pull_of(kernel):
    return lambda r: (
        r * kernel.gradient_kernel.log(torch.tensor(r * r, dtype=torch.float64)).exp().item()
    )


@pytest.mark.parametrize(
    ("make", "dim", "table"),
    [
        (Gaussian, 1, (37.6, 13.6, 2.01)), (Gaussian, 2, (46.1, 12.3, 1.67)), (Gaussian, 25, (1539, 10.3, 1.43)),
        (Laplace, 1, (50.6, 18.8, 3.41)), (Laplace, 2, (34.6, 10.5, 2.29)), (Laplace, 25, (3.92, 1.98, 1.47)),
    ],
)  # fmt: skip
def test_a_bandwidth_costs_noise(make, dim, table):
    """The table of the page at .1, .2 and 1 of the mean distance; a Gaussian's is 2 ((1+2t)² / (1+4t))^(D/2+1)."""
    _, mean_distance = noise(lambda r: r, dim)
    for fraction, expected in zip((0.1, 0.2, 1.0), table, strict=True):
        h = fraction * mean_distance
        measured, _ = noise(pull_of(make(h)), dim)
        assert measured == pytest.approx(expected, rel=6e-3)
        if make is Gaussian:
            t = 1 / h**2
            assert measured**2 == pytest.approx(
                2 * ((1 + 2 * t) ** 2 / (1 + 4 * t)) ** (dim / 2 + 1), rel=1e-3
            )


@pytest.mark.parametrize("dim", [1, 3, 25])
@pytest.mark.parametrize("kernel", DEFINITE, ids=str)
def test_no_kernel_score_is_less_noisy_than_the_mean(kernel, dim):
    """Cauchy-Schwarz: ν >= sqrt 2, attained by a pull in proportion to r, that of β = 2."""
    assert noise(pull_of(kernel), dim)[0] > math.sqrt(2)
    assert noise(lambda r: 2 * r, dim)[0] == pytest.approx(math.sqrt(2), rel=1e-6)
