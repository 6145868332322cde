"""A small call of every public name on clouds x [N, 2] and y [M, 2], for laws that hold for all of them."""

import torch

import wgflow as wg

K = wg.Gaussian(0.7)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def score(x):
    return -x


def queue(x, y):
    held = wg.SampleQueue(2, size=4)
    held.push(x)
    return held.draw(3, generator=seeded())


def drawn(kernel):
    return lambda x, y: wg.KDE(y, kernel).sample(5, generator=seeded())


def weighted_drift(divergence):
    return lambda x, y: wg.drifting_field(x, y, x, kernel=K, divergence=divergence)


def descent(functional):
    def call(x, y):
        F = functional(y)
        return F.value(x), F.velocity(x)

    return call


def moved(solver):
    return lambda x, y: wg.flow(wg.KDE(y, K).score, x, solver=solver, steps=3)


def unit(t):
    return torch.nn.functional.normalize(t, dim=-1) if isinstance(t, torch.Tensor) else t


def w(t):
    if not isinstance(t, torch.Tensor):
        return torch.arange(1.0, len(t) + 1)
    return torch.arange(1.0, len(t) + 1, dtype=t.dtype, device=t.device)


CALLS = {
    "kernel_average": lambda x, y: wg.kernel_average(x, y, kernel=K),
    "kernel_shift": lambda x, y: wg.kernel_shift(x, y, kernel=K, log_weights=w(y).log()),
    "explain_backend": lambda x, y: wg.explain_backend(x, y, kernel=K),
    # kernels: their densities and draws
    "Gaussian": drawn(K),
    "Laplace": drawn(wg.Laplace(0.7)),
    "Matern": drawn(wg.Matern(0.7, 2.5)),
    "RationalQuadratic": drawn(wg.RationalQuadratic(0.7, 3.0)),
    "Compact": drawn(wg.Compact(0.7, 3)),
    "flat": drawn(wg.flat(0.7)),
    "epanechnikov": drawn(wg.epanechnikov(0.7)),
    "biweight": drawn(wg.biweight(0.7)),
    "student_t": drawn(wg.student_t(0.7, nu=3.0, dim=2)),
    "KDE": lambda x, y: (
        [
            getattr(wg.KDE(y, K, w(y)), read)(x)
            for read in (
                "log_density",
                "score",
                "hessian",
                "responsibilities",
                "effective_sample_size",
            )
        ]
        + [wg.KDE(y, K, w(y)).debiased().samples]
    ),
    # bandwidths
    "scott": lambda x, y: wg.scott(y),
    "silverman": lambda x, y: wg.silverman(y),
    "median_heuristic": lambda x, y: wg.median_heuristic(y),
    "leave_one_out": lambda x, y: wg.leave_one_out(y),
    "per_dimension": lambda x, y: wg.per_dimension(y),
    "full_matrix": lambda x, y: wg.full_matrix(y),
    "Annealed": lambda x, y: wg.Annealed(1.0, 0.1, over=2.0)(0.5),
    # fields
    "mean_shift": lambda x, y: wg.mean_shift(x, y, kernel=K),
    "drifting_field": lambda x, y: wg.drifting_field(x, y, x, kernel=K, pos_weights=w(y)),
    "ReverseKL": weighted_drift(wg.ReverseKL()),
    "ForwardKL": weighted_drift(wg.ForwardKL()),
    "JensenShannon": weighted_drift(wg.JensenShannon()),
    "SkewKL": weighted_drift(wg.SkewKL()),
    "ChiSquare": weighted_drift(wg.ChiSquare()),
    "Hellinger": weighted_drift(wg.Hellinger()),
    "Alpha": weighted_drift(wg.Alpha(0.3)),
    "likelihood_field": lambda x, y: wg.likelihood_field(x, y, kernel=K),
    "energy_field": lambda x, y: wg.energy_field(x, y),
    "sliced_energy_field": lambda x, y: wg.sliced_energy_field(x, y, generator=seeded()),
    "published_field": lambda x, y: wg.published_field(x, y, pos_weights=w(y)),
    "published_magnitudes": lambda x, y: wg.published_magnitudes(x, y),
    "published_scale": lambda x, y: wg.published_scale(x, y),
    "spread_ratio": lambda x, y: wg.spread_ratio(x, y),
    "mmd_field": lambda x, y: wg.mmd_field(x, y, kernel=[K, wg.Gaussian(2.0)]),
    "blob_field": lambda x, y: wg.blob_field(x, wg.KDE(y, K).score, kernel=K),
    "stein_field": lambda x, y: wg.stein_field(x, wg.KDE(y, K).score, kernel=K),
    "sinkhorn_field": lambda x, y: wg.sinkhorn_field(x, y, epsilon=0.5, pos_weights=w(y)),
    "conservative_field": lambda x, y: wg.conservative_field(x, y, x, kernel=wg.Laplace(0.7)),
    "SinkhornField": lambda x, y: wg.SinkhornField(0.5)(x, y),
    "ConservativeField": lambda x, y: wg.ConservativeField(K)(x, y),
    "DriftingField": lambda x, y: wg.DriftingField(K)(x, y),
    "LikelihoodField": lambda x, y: wg.LikelihoodField(K)(x, y),
    "EnergyField": lambda x, y: wg.EnergyField()(x, y),
    "SlicedEnergyField": lambda x, y: wg.SlicedEnergyField(8, seeded())(x, y),
    "NystromAverage": lambda x, y: wg.NystromAverage(y, y[:3], K, w(y)).error_bound(x),
    "NystromField": lambda x, y: wg.NystromField(wg.NystromAverage(y, y[:3], K), 0.1)(x, y),
    "SphereField": lambda x, y: wg.SphereField(wg.EnergyField())(unit(x), unit(y)),
    "exponential_map": lambda x, y: wg.exponential_map(unit(x), y),
    "PublishedField": lambda x, y: wg.PublishedField()(x, y),
    "MMDField": lambda x, y: wg.MMDField(K)(x, y),
    "BlobField": lambda x, y: wg.BlobField(K)(x, y),
    "SteinField": lambda x, y: wg.SteinField(K)(x, y),
    # functionals
    "MMD": descent(lambda y: wg.MMD(y, K)),
    "EnergyDistance": descent(wg.EnergyDistance),
    "BlobKL": descent(lambda y: wg.BlobKL(wg.KDE(y, K), K)),
    "BlobDivergence": descent(lambda y: wg.BlobDivergence(wg.KDE(y, K), K, wg.ChiSquare())),
    "Likelihood": descent(lambda y: wg.Likelihood(y, K)),
    "Interaction": lambda x, y: wg.Interaction(K).velocity(x),
    "Potential": lambda x, y: wg.Potential(lambda x: x.square().sum(-1)).velocity(x),
    "Sinkhorn": descent(lambda y: wg.Sinkhorn(y, blur=0.5)),
    # flows
    "flow": lambda x, y: wg.flow(
        lambda x: wg.energy_field(x, y), x, solver=wg.Adaptive(0.1), steps=3
    ),
    "Euler": moved(wg.Euler(0.1)),
    "Heun": moved(wg.Heun(0.1)),
    "Adaptive": moved(wg.Adaptive(0.1)),
    "HeavyBall": moved(wg.HeavyBall(0.1)),
    "Langevin": lambda x, y: moved(wg.Langevin(0.1, generator=seeded()))(x, y),
    "MALA": lambda x, y: moved(wg.MALA(0.1, wg.KDE(y, K).log_density, generator=seeded()))(x, y),
    "integrate": lambda x, y: wg.integrate(wg.KDE(y, K).score, x, times=[0.5, 1.0], rtol=1e-3),
    "Trajectory": lambda x, y: wg.flow(lambda x: wg.mean_shift(x, y, kernel=K), x, steps=3).end,
    # losses
    "regress_onto": lambda x, y: wg.regress_onto(x, wg.mean_shift(x, y, kernel=K)),
    "drifting_loss": lambda x, y: wg.drifting_loss(x, y),
    "DriftingLoss": lambda x, y: wg.DriftingLoss()(x, y, y, 2.0),
    "DriftingReport": lambda x, y: wg.DriftingLoss(wg.EnergyField())(x, y),
    "draw_guidance": lambda x, y: wg.draw_guidance(3, generator=seeded()),
    "patch_features": lambda x, y: wg.patch_features(x[None, None], patches=(2,)),
    "guidance_weight": lambda x, y: wg.guidance_weight(2.0, gen=4, neg=3),
    "SampleQueue": queue,
    # targets
    "boltzmann_weights": lambda x, y: wg.boltzmann_weights(y[:, 0], alpha=0.5),
    "importance_weights": lambda x, y: wg.importance_weights(y[:, 0], y[:, 1]),
    "top_k_weights": lambda x, y: wg.top_k_weights(y[:, 0], k=2),
    "level_set_weights": lambda x, y: wg.level_set_weights(y[:, 0], threshold=y[:, 0].mean()),
    "matched_temperature": lambda x, y: wg.matched_temperature(y[:, 0], k=2),
    "total_variation": lambda x, y: wg.total_variation(
        w(y) / w(y).sum(), torch.ones_like(w(y)) / len(y)
    ),
    "effective_sample_size": lambda x, y: wg.effective_sample_size(w(y)),
    # metrics
    "energy_distance": lambda x, y: wg.energy_distance(x, y),
    "mmd2": lambda x, y: wg.mmd2(x, y, kernel=K),
    "sliced_w2": lambda x, y: wg.sliced_w2(x, y, generator=seeded()),
    "w2": lambda x, y: wg.w2(x[: len(y)], y[: len(x)]),
    "kde_kl": lambda x, y: wg.kde_kl(x, y, kernel=K),
    "frechet_distance": lambda x, y: wg.frechet_distance(x, y),
    "support_overlap": lambda x, y: wg.support_overlap(x, y, k=2),
    "SupportOverlap": lambda x, y: wg.support_overlap(y, x, k=2),
    "mode_coverage": lambda x, y: wg.mode_coverage(x, y, radius=1.0),
    "mode_proportions": lambda x, y: wg.mode_proportions(x, y),
}
