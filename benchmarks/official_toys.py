r"""The toy setting of the drifting-models demonstration, with every field of the library in the place of its own.

    python benchmarks/official_toys.py

A generator 32 -> 256 x 3 -> 2 (SiLU) learns the swiss roll (noise .03) and the checkerboard (noise .05): 2,000 steps
of Adam at 1e-3, batches of 512 generated and 512 fresh data points. Score: sliced W2 between 10,000 generated points
and as many fresh ones, beside that of two fresh samples (the floor). Each field with a bandwidth has it chosen from
`WIDTHS`, on a seed used for nothing else. Rows are written as they come, five fields with all seeds before the others;
a second call goes on where the first stopped. To try it: `--steps 3 --search-steps 1 --out /tmp/t.json`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _cli import script_parser
from _results import ResultFile, markdown, plus_minus
from conditional_toys import shortened
from torch import Tensor, nn

import wgflow as wg
from wgflow.testing import toy

Field = Callable[[Tensor, Tensor], Tensor]

TOYS = {"swiss roll": toy.SwissRoll(noise=0.03), "checkerboard": toy.Checkerboard(noise=0.05)}
DIVERGENCES = (
    wg.ReverseKL(), wg.ForwardKL(), wg.JensenShannon(), wg.SkewKL(), wg.ChiSquare(), wg.Hellinger(), wg.Alpha(1.5),
    wg.ForwardKL() + 0.5 * wg.ChiSquare(),
)  # fmt: skip
WIDTHS = (0.05, 0.1, 0.2)  # lengths; both targets fill a disc or a square of radius 1
SETUP = {
    "generator": "MLP 32-256-256-256-2, SiLU",
    "optimiser": "Adam, learning rate 1e-3, constant",
    "batch": 512,
    "longest": 1.0,  # displacements are shortened to this: the weights of some divergences are unbounded
    "projections": 256,
    "samples": 10_000,
    "search_seed": 100,
    "seeds": [0, 1, 2, 3, 4],
}


def drifting(divergence: wg.ReverseKL, h: float) -> Field:
    # A point's own repulsion is left out, as the demonstration does: every step draws fresh points, so no frozen group
    # can expand. With itself among 512 negatives a point of a thin region feels its own pull only.
    return wg.DriftingField(wg.Gaussian(h), divergence, skip_self=True)


def demonstration(x: Tensor, y: Tensor) -> Tensor:
    """The published field with the demonstration's own constants: an absolute temperature, no division by the rms."""
    unit = wg.published_scale(
        x, y
    ).item()  # s / sqrt(D); the field's own coordinates are divided by it
    temperature = 0.05 / (unit * x.shape[-1] ** 0.5)
    return wg.published_field(
        x, y, temperatures=(temperature,), rms_floor=1.0, clip=1e-24, self_distance=1e6
    )


def fields() -> dict[str, Callable[[float], Field]]:
    """Name -> bandwidth -> field. Those of `UNSCALED` have none."""
    table: dict[str, Callable[[float], Field]] = {
        "published": lambda h: wg.PublishedField(),
        "published, the demonstration's": lambda h: demonstration,
        "energy": lambda h: wg.EnergyField(),
        "likelihood": lambda h: wg.LikelihoodField(wg.Gaussian(h)),
        "energy, sliced": lambda h: wg.SlicedEnergyField(
            generator=torch.Generator().manual_seed(0)
        ),
        "Sinkhorn": lambda h: wg.SinkhornField(h * h),  # without a round, Eq. 3 with bandwidth h
        "conservative, Laplace": lambda h: h * h * wg.ConservativeField(wg.Laplace(h)),
    }
    return table | {f"drifting, {d}": lambda h, d=d: drifting(d, h) for d in DIVERGENCES}


UNSCALED = ("published", "published, the demonstration's", "energy", "energy, sliced")
FIRST = (
    *UNSCALED,
    "likelihood",
    "drifting, ReverseKL()",
)  # with all their seeds before the others' first


def train(target, field: Field, seed: int, steps: int) -> tuple[nn.Module, dict[str, float]]:
    """The demonstration's loop: regress the generated points onto themselves moved by the field."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (32, 256, 256, 256, 2)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layer = nn.Linear(a, b, device="meta").to_empty(device="cpu")  # its own seed, below
        with torch.no_grad():  # torch's default: uniform within 1 / sqrt(fan in)
            for p in (layer.weight, layer.bias):
                p.uniform_(-(a**-0.5), a**-0.5, generator=generator)
        layers += [layer, nn.SiLU()]
    net = nn.Sequential(*layers[:-1])
    adam = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    cpu = time.process_time()
    for _ in range(steps):
        x = net(torch.randn(SETUP["batch"], 32, generator=generator))
        with torch.no_grad():
            v = field(x, target.sample(SETUP["batch"], generator=generator))
            v = shortened(v, SETUP["longest"])
        adam.zero_grad()
        wg.regress_onto(x, v).backward()
        adam.step()
    return net, {"cpu_ms_per_step": 1e3 * (time.process_time() - cpu) / max(steps, 1)}


@torch.no_grad()
def score(target, net: nn.Module | None, seed: int) -> dict[str, float]:
    """Sliced W2 and energy distance to fresh data; without a network, of fresh data to fresh data."""
    generator, n = torch.Generator().manual_seed(50_000 + seed), SETUP["samples"]
    y = target.sample(n, generator=generator)
    x = (
        net(torch.randn(n, 32, generator=generator))
        if net
        else target.sample(n, generator=generator)
    )
    distance = wg.sliced_w2(x, y, projections=SETUP["projections"], generator=generator).item()
    return {"sliced_w2": distance, "energy_distance": wg.energy_distance(x[:2000], y[:2000]).item()}


def run(out: Path, steps: int, search_steps: int) -> dict:
    """The floor, the search for a bandwidth, five seeds at the best one; `out` is rewritten after every row, whole."""
    setup = {**SETUP, "steps": steps, "search_steps": search_steps}
    file = ResultFile(out, setup, ("rows",), table)

    def cell(part: str, name: str, field: str, h: float, seed: int, count: int) -> dict:
        def make() -> dict:
            net, cost = train(TOYS[name], fields()[field](h), seed, count)
            return {**score(TOYS[name], net, seed), **cost}

        key = {"part": part, "toy": name, "field": field, "h": h, "seed": seed}
        return file.row("rows", key, make)

    for name, target in TOYS.items():
        for seed in SETUP["seeds"]:
            key = {"part": "floor", "toy": name, "seed": seed}
            file.row("rows", key, partial(score, target, None, seed))
    best = {
        (field, name): 0.0
        for field in sorted(fields(), key=lambda f: f not in FIRST)
        for name in TOYS
    }
    for field, name in best:
        if field not in UNSCALED:
            tried = [
                cell("search", name, field, w, SETUP["search_seed"], search_steps) for w in WIDTHS
            ]
            best[field, name] = min(tried, key=lambda r: r["sliced_w2"])["h"]
    for rest in (False, True):
        for seed in SETUP["seeds"]:
            for (field, name), h in best.items():
                if (field not in FIRST) == rest:
                    cell("final", name, field, h, seed, steps)
    return file.record


def table(results: dict) -> str:
    """Markdown, from the rows alone: mean ± standard deviation over seeds."""
    setup, rows = results["setup"], results["rows"]

    def values(**key) -> list[dict]:
        return [r for r in rows if all(r.get(k) == v for k, v in key.items())]

    def scores(found: list[dict]) -> list[str]:
        return [
            plus_minus([r[key] for r in found], 4) if found else ""
            for key in ("sliced_w2", "energy_distance")
        ]

    lines = [
        "# Every field in the toy setting of drifting models",
        "",
        f"{setup['generator']}; {setup['optimiser']}; {setup['steps']} steps, batch {setup['batch']}, seeds "
        f"{setup['seeds']}; sliced W2 ({setup['projections']} directions) and energy distance between generated and "
        f"fresh points ({setup['samples']} and 2,000 of each). Bandwidths: the best of {WIDTHS} after "
        f"{setup['search_steps']} steps on seed {setup['search_seed']}. Milliseconds: processor time of a step, the "
        "least disturbed run.",
    ]
    for name in TOYS:
        body = [["fresh data", "", *scores(values(part="floor", toy=name)), ""]]
        for field in dict.fromkeys(r["field"] for r in values(part="final", toy=name)):
            found = values(part="final", toy=name, field=field)
            cost = min(r["cpu_ms_per_step"] for r in found)
            body.append([field, str(found[0]["h"] or ""), *scores(found), f"{cost:.0f}"])
        header = "field | h | sliced W2 | energy distance | ms"
        lines += ["", f"## {name}", "", *markdown(header, body)]
    return "\n".join(lines) + "\n"


def main() -> None:
    cli = script_parser(__doc__)
    cli.add_argument("--out", type=Path, default=Path("benchmarks/results/official_toys.json"))
    cli.add_argument("--steps", type=int, default=2000, help="updates of a final run")
    cli.add_argument("--search-steps", type=int, default=200, help="updates of a search run")
    args = cli.parse_args()
    torch.set_num_threads(1)
    print(table(run(args.out, args.steps, args.search_steps)))


if __name__ == "__main__":
    main()
