r"""One-step drifting generators of handwritten digits against flow matching of the same network and time.

    python benchmarks/digits.py

scikit-learn's 8 x 8 digits, by class, in pixels: three seeds, strengths of guidance, the published
objective. Every generator is an MLP of two hidden layers of 256, trained with Adam for about the
same processor time (the table shows it) on one thread. Scores compare one sample for each held-out
label, four times over, with the held-out digits:

* accuracy: how often a support vector machine, trained on the real data, reads the label that was asked for. Blurred
  class means score best, so never read it alone;
* energy distance in pixels, averaged over the classes (unbiased: a perfect sampler scatters around 0);
* Fréchet distance between Gaussians fitted to 20 principal components of the pixels (biased: see real digits);
* variance: that of a class over the true one.

Rows are written seed by seed; a second call goes on where the first stopped. Try it: `--scale .01 --out d.json`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _cli import script_parser
from _provenance import provenance
from _results import begun, markdown, plus_minus, write_results
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor

import wgflow as wg
from wgflow_rl.utils.files import write_whole

SETUP = {
    "hidden": [256, 256],
    "optimiser": "Adam, 5e-3, cosine decay to 0",
    "noise": 16,  # dimensions of the drifting generator's; flow matching starts from 64
    "group": 16,  # generated digits of each class and step
    "positives": 32,  # of each class and step
    "unconditional": 32,  # negatives of guidance
    "flow_batch": 320,
    "dropped_labels": 0.1,  # flow matching, for its guidance
    "held_out": 594,
    "seeds": [0, 1, 2],
}
STEPS = {
    "plain": 900,
    "guided": 700,
    "published": 800,
    "flow": 1100,
}  # for about equal processor time
HOT = torch.eye(10)
Sampler = Callable[[Tensor, torch.Generator], Tensor]  # labels [N] -> digits [N, 64]


class Digits:
    """1,203 digits to train on, 594 held out, pixels in [-1, 1]; the classifier, and 20 principal components."""

    def __init__(self):
        pixels, labels = load_digits(return_X_y=True)
        x, y = torch.from_numpy(pixels).float() / 8 - 1, torch.from_numpy(labels).long()
        split = train_test_split(
            range(len(x)), test_size=SETUP["held_out"], random_state=0, stratify=labels
        )
        (self.x, self.y), (self.x_test, self.y_test) = ((x[part], y[part]) for part in split)
        self.classifier = SVC(gamma=0.064).fit(self.x, self.y)
        self.components = torch.linalg.svd(self.x - self.x.mean(0), full_matrices=False).Vh[:20].T

    def score(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        classes = [(x[labels == c], self.x_test[self.y_test == c]) for c in range(10)]
        components = ((each @ self.components).double() for each in (x, self.x_test))
        return {
            "accuracy": float((self.classifier.predict(x) == labels.numpy()).mean()),
            "energy_distance": statistics.fmean(
                wg.energy_distance(a, b).item() for a, b in classes
            ),
            "frechet": wg.frechet_distance(*components).item(),
            "variance": statistics.fmean(
                (a.var(0).sum() / b.var(0).sum()).item() for a, b in classes
            ),
        }


def network(inputs: int, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lin, silu = torch.nn.Linear, torch.nn.SiLU()
        return torch.nn.Sequential(lin(inputs, 256), silu, lin(256, 256), silu, lin(256, 64))


def optimise(net: torch.nn.Module, loss: Callable[[], Tensor], steps: int) -> float:
    """Seconds of processor time that `steps` updates took."""
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    start = time.process_time()
    for _ in range(steps):
        adam.zero_grad()
        loss().backward()
        adam.step()
        decay.step()
    return time.process_time() - start


def drifting(
    data: Digits, seed: int, steps: int, *, guidance: float = 1.0, published: bool = False
) -> tuple[Sampler, float]:
    """Energy field, at rest where q = a p_c - (a - 1) p (classifier-free guidance); or the published objective."""
    generator, net = torch.Generator().manual_seed(seed), network(SETUP["noise"] + 10, seed)
    queue, every = wg.SampleQueue(data.x.shape[1], size=200, classes=10), torch.arange(10)
    queue.push(data.x, data.y)

    def sample(labels: Tensor, g: torch.Generator) -> Tensor:
        return net(
            torch.cat([torch.randn(*labels.shape, SETUP["noise"], generator=g), HOT[labels]], -1)
        )

    def loss() -> Tensor:
        x = sample(every[:, None].expand(-1, SETUP["group"]), generator)
        pos = queue.draw(SETUP["positives"], every, generator=generator)
        if published:
            return wg.drifting_loss(x, pos)
        V = wg.energy_field(x.detach(), pos)
        if guidance > 1:
            some = torch.randint(len(data.x), (SETUP["unconditional"],), generator=generator)
            V = V + (guidance - 1) * wg.energy_field(x.detach(), pos, data.x[some])
        return wg.regress_onto(x, V)

    return sample, optimise(net, loss, steps)


def flow_matching(
    data: Digits, seed: int, steps: int
) -> tuple[Callable[[int, float], Sampler], float]:
    """Velocity x_1 - x_0 on straight lines; the sampler takes Euler steps, guided by the velocity without label."""
    generator, net = torch.Generator().manual_seed(seed), network(64 + 1 + 10, seed)

    def loss() -> Tensor:
        n = SETUP["flow_batch"]
        some = torch.randint(len(data.x), (n,), generator=generator)
        x1, x0 = data.x[some], torch.randn(n, 64, generator=generator)
        t = torch.rand(n, 1, generator=generator)
        label = HOT[data.y[some]] * (
            torch.rand(n, 1, generator=generator) > SETUP["dropped_labels"]
        )
        return (net(torch.cat([(1 - t) * x0 + t * x1, t, label], -1)) - (x1 - x0)).square().mean()

    seconds = optimise(net, loss, steps)

    def sampler(euler: int, guidance: float) -> Sampler:
        def sample(labels: Tensor, g: torch.Generator) -> Tensor:
            x, label = torch.randn(len(labels), 64, generator=g), HOT[labels]
            for k in range(euler):
                t = torch.full((len(x), 1), k / euler)
                v = net(torch.cat([x, t, label], -1))
                if guidance > 1:
                    plain = net(torch.cat([x, t, 0 * label], -1))
                    v = plain + guidance * (v - plain)
                x = x + v / euler
            return x

        return sample

    return sampler, seconds


@torch.no_grad()
def rows(data: Digits, seed: int, scale: float):
    """Every generator of a seed with its scores, as they are made."""
    labels, counts = (
        data.y_test.repeat(4),
        {name: max(1, round(n * scale)) for name, n in STEPS.items()},
    )

    def scored(name: str, evaluations: int, sample: Sampler, seconds: float) -> dict:
        x = sample(labels, torch.Generator().manual_seed(50_000 + seed))
        return {
            "name": name,
            "seed": seed,
            "evaluations": evaluations,
            "seconds": seconds,
            **data.score(x, labels),
        }

    with torch.enable_grad():
        runs = {
            "drifting, energy": drifting(data, seed, counts["plain"]),
            "drifting, energy, guidance 1.1": drifting(data, seed, counts["guided"], guidance=1.1),
            "drifting, energy, guidance 1.25": drifting(
                data, seed, counts["guided"], guidance=1.25
            ),
            "drifting, published objective": drifting(
                data, seed, counts["published"], published=True
            ),
        }
        sampler, seconds = flow_matching(data, seed, counts["flow"])
    for name, run in runs.items():
        yield scored(name, 1, *run)
    for euler, guidance in ((1, 1.0), (2, 1.0), (10, 1.0), (10, 1.1), (10, 1.25)):
        name = f"flow matching, {euler} step{'s' * (euler > 1)}" + f", guidance {guidance}" * (
            guidance > 1
        )
        yield scored(name, euler * (1 + (guidance > 1)), sampler(euler, guidance), seconds)


def table(results: dict) -> str:
    """Markdown, from the rows alone: mean ± standard deviation over seeds."""
    lines = [
        "# Handwritten digits: one step of drifting against flow matching",
        "",
        f"MLPs of hidden layers {results['setup']['hidden']}, {results['setup']['optimiser']}, seeds "
        f"{results['setup']['seeds']}, steps {results['setup']['steps']}; mean ± standard deviation. Evaluations: of "
        "the network for one digit. Seconds: processor time of the training, least of the seeds, on one thread.",
        "",
    ]
    scores = {"accuracy": 3, "energy_distance": 3, "frechet": 2, "variance": 2}  # digits
    body = []
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
        found = [row for row in results["rows"] if row["name"] == name]
        numbers = [plus_minus([row[key] for row in found], n) for key, n in scores.items()]
        seconds = f"{min(row['seconds'] for row in found):.1f}" if found[0]["seconds"] else ""
        body.append([name, str(found[0]["evaluations"] or ""), *numbers, seconds])
    lines += markdown(
        "generator | evaluations | accuracy | energy distance | Fréchet distance | variance | s",
        body,
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    cli = script_parser(__doc__)
    cli.add_argument("--out", type=Path, default=Path("benchmarks/results/digits.json"))
    cli.add_argument("--scale", type=float, default=1.0, help="of the number of training steps")
    args = cli.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    data, setup = Digits(), {**SETUP, "steps": STEPS, "scale": args.scale}
    results = begun(args.out, {"setup": setup, "made_by": provenance(), "rows": []})
    if not results["rows"]:
        real = {
            "name": "real digits, the training set",
            "seed": None,
            "evaluations": 0,
            "seconds": 0,
        }
        results["rows"].append({**real, **data.score(data.x, data.y)})
    for seed in SETUP["seeds"]:
        if any(row["seed"] == seed for row in results["rows"]):
            continue
        results["rows"] += list(rows(data, seed, args.scale))
        write_results(args.out, results)
        write_whole(args.out.with_suffix(".md"), table(results))
    print(table(results))


if __name__ == "__main__":
    main()
