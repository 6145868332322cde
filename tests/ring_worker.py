"""One process of a ring, started by tests/test_distributed.py: does every case on its shard and saves what it got.

python -m tests.ring_worker TASK STORE RANK SIZE OUT
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

import wgflow as wg
from wgflow.distributed import sharded
from wgflow.reductions import kernel_shift_f64, log_total

torch.set_num_threads(1)
KERNELS = (
    wg.Gaussian(0.7),
    wg.Laplace(0.9),
    wg.Matern(0.6, 2.5),
    wg.RationalQuadratic(1.0, 2.0),
    wg.biweight(9.0),
)
SIZES = {2: (3, 5), 3: (4, 1, 3)}  # the union is 8 points; shards are unequal
SIZES_X = {2: (4, 2), 3: (0, 5, 1)}  # so are those of x, one empty
TIMEOUT = 3.0


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def shard(t, sizes, rank, dim=-2):
    return t.split(list(sizes), dim)[rank]


def with_gradients(call, clouds, upstream):
    """[*call(*clouds), *gradients], of what `upstream` weighs."""
    leaves = [t.clone().requires_grad_() for t in clouds]
    out = call(*leaves)
    return [t.detach() for t in (*out, *torch.autograd.grad(out, leaves, upstream(out)))]


@dataclass(frozen=True)
class Case:
    """A sum over whole clouds, and how a rank takes its part of them."""

    kernel: wg.Kernel
    lead: tuple[int, ...] = ()
    skip_self: bool = False
    weights: bool = True
    dtype: torch.dtype = torch.float64
    offset: float = 0.0
    local: str = "auto"
    absent: bool = False  # the whole first shard weighs nothing, in one of the batch elements
    sizes: tuple[int, ...] | None = None

    def clouds(self):
        y = randn(8, 3, seed=1) + self.offset
        x = y + 0.1 if self.skip_self else randn(*self.lead, 6, 3, seed=2) + self.offset
        w = randn(*self.lead, 8, seed=3)
        w[..., 2] = -math.inf
        if self.absent:
            w[0, :4] = -math.inf
        return [t.to(self.dtype) for t in ((x, y, w) if self.weights else (x, y))]

    def upstream(self, rows):
        """The gradient of a loss that is a sum over points, at some of the points."""
        mass = randn(*self.lead, 8, seed=4)[..., rows].to(self.dtype)
        return lambda out: (mass, randn(*self.lead, 8, 3, seed=5)[..., rows, :].to(self.dtype))

    def whole(self):
        return with_gradients(
            self.run(), self.clouds(), self.upstream(slice(0, self.clouds()[0].shape[-2]))
        )

    def run(self, **how):
        def call(x, y, w=None):
            return wg.kernel_shift(
                x, y, kernel=self.kernel, log_weights=w, skip_self=self.skip_self, **how
            )

        return call

    def part(self, rank, size):
        of_y = self.sizes or SIZES[size]
        of_x = of_y if self.skip_self else SIZES_X[size]
        x, y, *w = self.clouds()
        first = sum(of_x[:rank])
        mine = [shard(x, of_x, rank), shard(y, of_y, rank), *(shard(t, of_y, rank, -1) for t in w)]
        with sharded(backend=self.local):
            return with_gradients(self.run(), mine, self.upstream(slice(first, first + of_x[rank])))


CASES = {
    **{f"{k} {lead} {s}": Case(k, lead, s) for k in KERNELS for lead, s in (((), False), ((2,), False), ((), True))},
    "blocked": Case(KERNELS[0], local="blocked"),
    "no weights": Case(KERNELS[1], weights=False),
    "no weights, skip_self": Case(KERNELS[0], weights=False, skip_self=True),
    "absent shard": Case(KERNELS[0], (2,), absent=True),
    "float32": Case(KERNELS[0], dtype=torch.float32),
    "float32 far from the origin": Case(KERNELS[0], dtype=torch.float32, offset=1e4),
    "float16": Case(KERNELS[2], dtype=torch.float16),
    "bfloat16": Case(KERNELS[0], weights=False, dtype=torch.bfloat16),
    "length scales": Case(wg.Gaussian([0.35, 0.7, 1.4])),
}  # fmt: skip
SPLITS = ((8, 0, 0), (0, 0, 8), (0, 8, 0), (3, 3, 2), (1, 6, 1))  # of one cloud over three ranks
RESHARDED = {f"split {s}": Case(KERNELS[2], (2,), sizes=s) for s in SPLITS} | {
    f"split {s}, skip_self": Case(KERNELS[2], skip_self=True, sizes=s) for s in SPLITS
}


def fields():
    """Fields and densities as functions of clouds (x, pos, neg, weights of pos, weights of neg)."""
    k = wg.Gaussian(0.8)
    return {
        "mean_shift": lambda x, p, n, wp, wn: wg.mean_shift(x, p, kernel=k, weights=wp),
        "float32 weights, length scales": lambda x, p, n, wp, wn: kernel_shift_f64(
            x.detach().float(),
            p.detach().float(),
            kernel=wg.Gaussian([0.35, 0.7, 1.4]),
            weights=wp.detach().float(),
        )[1],
        "drifting_field": lambda x, p, n, wp, wn: wg.drifting_field(
            x, p, n, kernel=k, divergence=wg.JensenShannon(), pos_weights=wp, neg_weights=wn
        ),
        "drifting_field, skip_self": lambda x, p, n, wp, wn: wg.drifting_field(
            n, p, n, kernel=k, divergence=wg.ForwardKL(), neg_weights=wn, skip_self=True
        ),
        "drifting_field, unweighted": lambda x, p, n, wp, wn: wg.drifting_field(
            n, p, n, kernel=k, divergence=wg.ChiSquare(), skip_self=True
        ),
        "energy_field, points of its own": lambda x, p, n, wp, wn: wg.energy_field(
            n, p, pos_weights=wp
        ),
        "likelihood_field": lambda x, p, n, wp, wn: wg.likelihood_field(
            x, p, kernel=k, pos_weights=wp
        ),
        "energy_field": lambda x, p, n, wp, wn: wg.energy_field(
            x, p, n, pos_weights=wp, neg_weights=wn
        ),
        "mmd_field": lambda x, p, n, wp, wn: wg.mmd_field(n, p, kernel=k, pos_weights=wp),
        "blob_field": lambda x, p, n, wp, wn: wg.blob_field(n, wg.KDE(p, k, wp).score, kernel=k),
        "log_density": lambda x, p, n, wp, wn: wg.KDE(p, k, wp).log_density(x).unsqueeze(-1),
        "log_density, unweighted": lambda x, p, n, wp, wn: (
            wg.KDE(p, k).log_density(x).unsqueeze(-1)
        ),
        "score": lambda x, p, n, wp, wn: wg.KDE(p, wg.Matern(0.8, 2.5), wp).score(x),
        "hessian": lambda x, p, n, wp, wn: (
            wg.KDE(p.detach(), k, wp.detach()).hessian(x).flatten(-2)
        ),
    }


def field_clouds():
    return (
        randn(6, 3, seed=6),
        1 + randn(8, 3, seed=7),
        randn(8, 3, seed=8),
        randn(8, seed=9).exp(),
        randn(8, seed=10).exp(),
    )


def field_and_gradients(field, clouds):
    leaves = [t.clone().requires_grad_() for t in clouds]
    V = field(*leaves)
    if not V.requires_grad:
        return [V]
    grads = torch.autograd.grad(V.square().sum(), leaves, allow_unused=True, materialize_grads=True)
    return [V.detach(), *grads]


def said_by(call) -> str:
    """What a call raises, in words."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refusals(rank):
    """Name -> what this rank is told. Every one of them has to be an error on every rank."""
    x, k, first, shift = randn(4, 3), wg.Gaussian(1.0), rank == 0, wg.distributed.kernel_shift
    nan = x.clone()
    nan[0, 0] = math.nan
    no_weight = torch.full((4,), -math.inf, dtype=x.dtype)

    def another_call():
        with sharded():
            log_total(x, x[:, 0]) if first else wg.kernel_shift(x, x, kernel=k)

    def second_derivative():
        at = x.clone().requires_grad_()
        torch.autograd.grad(shift(at, x, kernel=k)[0].sum(), at, create_graph=True)

    calls = {
        "dimension": lambda: shift(x[:, : 2 + first], x[:, : 2 + first], kernel=k),
        "dtype": lambda: shift(*(2 * [x if first else x.float()]), kernel=k),
        "kernel": lambda: shift(x, x, kernel=k if first else wg.Gaussian(2.0)),
        "lengths": lambda: shift(x, x, kernel=wg.Gaussian([1.0 + first])),
        "skip_self": lambda: shift(x, x, kernel=k, skip_self=first),
        "leading dimensions": lambda: shift(x if first else x[None], x, kernel=k),
        "log_weights": lambda: shift(x, x, kernel=k, log_weights=x[:, 0] if first else None),
        "requires_grad": lambda: shift(x.clone().requires_grad_(first), x, kernel=k),
        "another call": another_call,
        "NaN": lambda: shift(nan if first else x, x, kernel=k),
        "one rank's shapes": lambda: shift(x[0] if first else x, x, kernel=k),
        "one rank's lengths": lambda: shift(x, x, kernel=wg.Gaussian([1.0] * (2 if first else 3))),
        "all empty": lambda: shift(x, x[:0], kernel=k),
        "one point": lambda: shift(x[:first], x[:first], kernel=k, skip_self=True),
        "all weights zero": lambda: shift(x, x, kernel=k, log_weights=no_weight),
        "second derivative": second_derivative,
        "the ring in the ring": lambda: sharded(backend="distributed").__enter__(),
    }
    told = {name: said_by(call) for name, call in calls.items()}
    with sharded():  # none of these says anything to the other ranks
        whole = {
            "energy_distance": lambda: wg.energy_distance(x, x),
            "mmd2": lambda: wg.mmd2(x, x, kernel=k),
            "kde_kl": lambda: wg.kde_kl(x, x, kernel=k),
            "leave_one_out": lambda: wg.leave_one_out(x),
            "spread_ratio": lambda: wg.spread_ratio(x, x),
            "the published field": lambda: wg.published_field(x, x),
            "stein_field": lambda: wg.stein_field(x, torch.zeros_like, kernel=k),
            "a normalized field": lambda: wg.EnergyField().normalized()(x, x),
            "a relative field": lambda: wg.EnergyField().relative()(x, x),
            "responsibilities": lambda: wg.KDE(x, k).effective_sample_size(x),
            "sample": lambda: wg.KDE(x, k).sample(2),
            "scott": lambda: wg.scott(x),
            "median_heuristic": lambda: wg.median_heuristic(x),
            "per_dimension": lambda: wg.per_dimension(x),
            "full_matrix": lambda: wg.full_matrix(x),
            "Adaptive": lambda: wg.flow(torch.neg, x, steps=2, solver=wg.Adaptive(0.1)),
            "min_speed": lambda: wg.flow(torch.neg, x, steps=2, min_speed=0.1),
            "integrate": lambda: wg.integrate(torch.neg, x, times=[1.0]),
        }
        told["only whole"] = {name: said_by(call) for name, call in whole.items()}
    return told


def largest_tensor():
    """Of a sum of 1500 x 1500 points a rank and its gradients, local sums blocked."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(
                t.numel()
                for t in (out if isinstance(out, tuple) else (out,))
                if isinstance(t, torch.Tensor)
            )
            return out

    x, y = randn(1500, 2).requires_grad_(), randn(1500, 2).requires_grad_()
    with Watch(), sharded(backend="blocked"):
        wg.kernel_shift(x, y, kernel=wg.Gaussian(1.0))[0].sum().backward()
    return max(seen)


def laws(rank, size):
    cases = CASES if size == 2 else {**CASES, **RESHARDED}
    done = {name: case.part(rank, size) for name, case in cases.items()}
    x, *samples = field_clouds()
    mine = [shard(x, SIZES_X[size], rank)]
    mine += [shard(t, SIZES[size], rank, -2 if t.dim() == 2 else -1) for t in samples]
    with sharded():
        done |= {name: field_and_gradients(field, mine) for name, field in fields().items()}
    k, average = wg.Gaussian(0.8), wg.distributed.kernel_average
    done["named"] = list(wg.kernel_average(*mine[:2], kernel=k, backend="distributed"))
    done["function"] = list(average(*mine[:2], kernel=k))
    said = str(wg.explain_backend(*mine[:2], kernel=k, backend="distributed"))
    with sharded():
        done["explained"] = [said, str(wg.explain_backend(*mine[:2], kernel=k))]
    alone = dist.new_group([0])
    if rank == 0:
        done["alone"] = list(average(*mine[:2], kernel=k, group=alone))
    else:
        done["outside"] = said_by(lambda: average(*mine[:2], kernel=k, group=alone))
    done["largest"] = largest_tensor()
    done["refusals"] = refusals(rank)
    return done


@dataclass(frozen=True)
class Fatal(wg.Laplace):
    """A kernel under which the last rank hangs or dies when it is read for the n-th time, one block after another."""

    end: str = "die"
    at: int = 2

    def log(self, sq):
        uses[0] += 1
        if dist.get_rank() == dist.get_world_size() - 1 and uses[0] == self.at:
            if self.end == "die":
                os._exit(7)
            stores[0].wait(
                [f"told {rank}" for rank in range(dist.get_rank())], timedelta(seconds=60)
            )
        return super().log(sq)


uses, stores = [0], []


def lost(rank, size):
    """The last rank first hangs in one group, then dies on the way back in another; the others tell what they saw."""
    x, done, stages = (
        randn(4, 3),
        {},
        {"hangs": Fatal(1.0, "hang", 2), "dies": Fatal(1.0, "die", size + 2)},
    )
    groups = [dist.new_group(timeout=timedelta(seconds=TIMEOUT)) for _ in stages]
    for (stage, kernel), group in zip(stages.items(), groups, strict=True):
        dist.barrier()
        uses[0], at, start = 0, x.clone().requires_grad_(), time.monotonic()

        def call(at=at, kernel=kernel, group=group):
            wg.distributed.kernel_shift(at, x, kernel=kernel, group=group)[0].sum().backward()

        done[stage] = said_by(call), time.monotonic() - start
        stores[0].set(f"told {rank}", "")
    return done


def main() -> None:
    task, store, rank, size, out = sys.argv[1:]
    rank, size = int(rank), int(size)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    stores.append(dist.FileStore(store, size))
    dist.init_process_group(
        "gloo", store=stores[0], rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    torch.save({"laws": laws, "lost": lost}[task](rank, size), out)
    if task == "laws":
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
