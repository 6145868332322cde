r"""One-step drifting generators of MNIST digits against flow matching of the same size and training time.

    python benchmarks/mnist.py --data ~/mnist --work work drift --seed 0       # one row per call
    python benchmarks/mnist.py --data ~/mnist --work work flow --seconds 500 --settings '{"inner": 64, "lr": 0.004}'
    python benchmarks/mnist.py --data ~/mnist --work work report

Every run has one thread; `train_s` is its processor time, encoder included; but all tables other than "main" share the
encoder of their seed once it is there. Three judges of another architecture, trained on images that the training
encoder did not see, score 1,000 digits, 100 of every class, against test images; a row has the mean of their scores:

* Fréchet distance, precision, recall and coverage (k = 5) in a judge's penultimate layer;
* accuracy: how often a judge reads the label that was asked for, and that of the worst class;
* neighbours: the median distance in pixels to the nearest training image, over that of test images. Copies of training
  images would be near 0.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from itertools import product
from pathlib import Path

import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, write_results
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import wgflow as wg
from wgflow_rl.utils.files import write_whole

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "images"))
import encoders
import image_data
import train_mnist

SCORES = ("frechet", "precision", "recall", "coverage", "accuracy", "worst_class", "neighbours")
LABELS = torch.arange(10).repeat(100)
NOISE = (1.0, 0.9)  # scales of the noise that images are made from
TABLES = ("main", "training time", "fields", "temperatures", "one judge")  # the last: earlier runs
JUDGES = (1234, 1235, 1236)  # seeds


class Judge(nn.Module):
    """A classifier that shares neither architecture nor training images with the encoder of the features."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((1, 24), (24, 48), (48, 64)):
            layers += [nn.Conv2d(i, o, 5, padding=2), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 96), nn.ReLU())
        self.head = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def judges(data: Path, work: Path) -> list[Judge]:
    """The judges, trained once on the last 30,000 training images."""
    return [judge(data, work / f"judge-{seed}.pt", seed) for seed in JUDGES]


def judge(data: Path, path: Path, seed: int) -> Judge:
    net = Judge()
    if not path.exists():
        images, labels = (t[30_000:] for t in image_data.mnist(data))
        torch.manual_seed(seed)
        net = Judge()

        def loss(x: Tensor, pick: Tensor) -> Tensor:
            return cross_entropy(net(x), labels[pick])

        encoders.fit(net, images, loss, steps=1200, batch=64, lr=5e-3)
        image_data.save(net.state_dict(), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval().requires_grad_(False)


def score(images: Tensor, nets: list[Judge], data: Path) -> dict[str, float]:
    """The scores of images [1000, 1, 28, 28] of `LABELS`, means over the judges."""
    test, train = (
        image_data.to_float(image_data.mnist(data, part)[0]) for part in ("t10k", "train")
    )
    nearest = [
        torch.cdist(x[:500].flatten(1), train.flatten(1)).amin(-1).median() for x in (images, test)
    ]
    each = torch.tensor([_score(images, test[::2], net) for net in nets], dtype=torch.float64)
    values = [*each.mean(0).tolist(), float(nearest[0] / nearest[1])]
    return {name: round(value, 4) for name, value in zip(SCORES, values, strict=True)}


def _score(images: Tensor, test: Tensor, net: Judge) -> list[float]:
    real, found = (torch.cat([net.body(t) for t in x.split(500)]) for x in (test, images))
    right = (net.head(found).argmax(-1) == LABELS).double()
    overlap = wg.support_overlap(found, real[: len(found)])
    worst = min(right[c == LABELS].mean() for c in range(10))
    first = (wg.frechet_distance(found, real), overlap.precision, overlap.recall, overlap.coverage)
    return [float(value) for value in (*first, right.mean(), worst)]


class Block(nn.Module):
    """A residual block whose first normalisation is scaled and shifted by the embedding of time and label."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(8, width), nn.SiLU()
        self.film = nn.Linear(embedding, 2 * width)
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e)[:, :, None, None].chunk(2, 1)
        h = self.one(self.act(self.norm(x) * (1 + scale) + shift))
        return x + self.two(self.act(h))


class Velocity(nn.Module):
    """A U-Net v(x, t, label) at 14 x 14 (images in 2 x 2 patches) and 7 x 7."""

    def __init__(self, inner: int = 208, embedding: int = 128):
        super().__init__()
        width = 8 * (inner // 32)
        self.register_buffer("frequencies", 2 ** torch.linspace(0, 8, 16))
        self.label, self.time = nn.Embedding(10, embedding), nn.Linear(32, embedding)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.Conv2d(width, inner, 2, stride=2)
        self.up = nn.ConvTranspose2d(inner, width, 2, stride=2)
        blocks = (width, inner, inner, width)
        self.blocks = nn.ModuleList(Block(w, embedding) for w in blocks)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        e = self.mix(self.time(torch.cat([phase.sin(), phase.cos()], -1)) + self.label(labels))
        fine = self.blocks[0](self.enter(nn.functional.pixel_unshuffle(x, 2)), e)
        h = self.blocks[2](self.blocks[1](self.down(fine), e), e)
        h = self.blocks[3](fine + self.up(h), e)
        return nn.functional.pixel_shuffle(self.leave(h), 2)


def train_flow(data: Path, seed: int, seconds: float, inner: int = 208, lr: float = 2e-3):
    """Flow matching along straight paths (Lipman et al. 2023), for some seconds of processor time."""
    images, labels = image_data.mnist(data)
    torch.manual_seed(seed)
    net = Velocity(inner=inner)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    adam = torch.optim.Adam(net.parameters(), lr, (0.9, 0.99))
    start, steps = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        adam.param_groups[0]["lr"] = (
            lr * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * spent / seconds)))
        )
        pick = torch.randint(len(images), (64,))
        x, noise = image_data.to_float(images[pick]), torch.randn(64, 1, 28, 28)
        t = torch.rand(64)
        at = noise + t[:, None, None, None] * (x - noise)
        loss = (net(at, t, labels[pick]) - (x - noise)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        ema.update_parameters(net)
        steps += 1
    return ema, {"train_s": round(time.process_time() - start), "steps": steps}


@torch.no_grad()
def sample_flow(
    net: nn.Module, labels: Tensor, evaluations: int, seed: int = 0, noise: float = 1.0
) -> Tensor:
    """Euler steps from scaled noise at t = 0 to images at t = 1."""
    x = noise * torch.randn(len(labels), 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    for i in range(evaluations):
        t = torch.full((len(labels),), i / evaluations)
        x = x + net(x, t, labels) / evaluations
    return x.clamp(-1, 1)


def drift_rows(args: argparse.Namespace) -> list[dict]:
    options = json.loads(args.settings)
    cfg = train_mnist.Settings(field=args.field, seed=args.seed, **options)
    out = args.work / args.name
    if args.table != "main":
        out.mkdir(exist_ok=True)
        for encoder in args.work.glob("encoder-*.pt"):
            shutil.copy(encoder, out)
    start = time.process_time()
    images, labels = image_data.mnist(args.data)
    net = train_mnist.train(cfg, images, labels, *train_mnist.networks(cfg), out)
    row = {"train_s": round(time.process_time() - start), "steps": cfg.steps, "evaluations": 1}
    for encoder in out.glob("encoder-*.pt"):
        shutil.copy(encoder, args.work)
    digits, rows = judges(args.data, args.work), []
    for noise in NOISE if args.table in ("main", "training time") else NOISE[:1]:
        parts = [
            train_mnist.sample(net, x, i, noise=noise) for i, x in enumerate(LABELS.split(100))
        ]
        rows.append(row | options | {"noise": noise} | score(torch.cat(parts), digits, args.data))
    return rows


def flow_rows(args: argparse.Namespace) -> list[dict]:
    options = json.loads(args.settings)
    net, cost = train_flow(args.data, args.seed, args.seconds, **options)
    rows, digits = [], judges(args.data, args.work)
    for n, noise in product((1, 10, 50), NOISE):
        parts = [sample_flow(net, x, n, i, noise) for i, x in enumerate(LABELS.split(100))]
        how = {"evaluations": n, "noise": noise}
        rows.append(cost | options | how | score(torch.cat(parts), digits, args.data))
    every = torch.arange(10)[:, None].expand(10, 12)
    grid = sample_flow(net, every.flatten(), 50).unflatten(0, every.shape)
    image_data.save_grid(grid, args.work / f"{args.name}.png")
    return rows


def report(work: Path) -> None:
    """Write results/mnist.json and mnist.md from the rows of all calls."""
    files = [json.loads(path.read_text()) for path in sorted((work / "rows").glob("*.json"))]
    rows = [
        row | {"commit": file["provenance"]["commit"]} for file in files for row in file["rows"]
    ]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        about = ("table", "method", "evaluations", "noise", "budget", "judges")
        key = [row.get(name) for name in about]
        groups.setdefault(tuple(key), []).append(row)
    sources = {file["provenance"]["commit"]: file["provenance"] for file in files}
    record = {"rows": rows, "provenance": list(sources.values())}
    write_results(RESULTS / "mnist.json", record)
    columns = ("train_s", "steps", *SCORES)
    lines = []
    for table in TABLES:
        body = []
        for (_, *how, _, _), found in (g for g in groups.items() if g[0][0] == table):
            cells = [*("-" if value is None else str(value) for value in how), str(len(found))]
            body.append(cells + [spread(found, c) for c in columns])
        header = " | ".join(["method", "evaluations", "noise", "seeds", *columns])
        lines += [f"## {table}", "", *markdown(header, body), ""]
    write_whole(RESULTS / "mnist.md", "\n".join(lines))


def spread(rows: list[dict], column: str) -> str:
    """The mean of a column over seeds, with its range."""
    values = [row[column] for row in rows if column in row]
    if not values:
        return "-"
    form = "{:.0f}" if isinstance(values[0], int) else "{:.2f}" if column == "frechet" else "{:.3f}"
    mean = form.format(sum(values) / len(values))
    several = f" ({form.format(min(values))}-{form.format(max(values))})" if len(values) > 1 else ""
    return mean + several


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("method", choices=["drift", "flow", "real", "report"])
    parser.add_argument("field", nargs="?", default=train_mnist.Settings.field)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--settings", default="{}", help="JSON of further settings")
    parser.add_argument("--table", choices=TABLES[:-1], default="main")
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.work / "rows").mkdir(parents=True, exist_ok=True)
    label = f"drift {args.field}" if args.method == "drift" else args.method
    options = json.loads(args.settings)
    if not options.get("features", True):
        label += ", pixels alone"
    if options.get("encoder") == "masked":
        label += ", masked autoencoder"
    told = ("steps", "features", "encoder")
    label += "".join(f", {name} {value}" for name, value in options.items() if name not in told)
    if args.method == "report":
        report(args.work)
        return
    steps = options.get("steps", train_mnist.Settings.steps)
    budget = round(args.seconds) if args.method == "flow" else steps
    args.name = re.sub(r"[^\w.+]+", "-", f"{args.table} {label} {budget} {args.seed}")
    if args.method == "real":  # the floor: training images in place of generated ones
        images, labels = image_data.mnist(args.data)
        pick = torch.cat([(labels == c).nonzero()[:100, 0] for c in range(10)]).reshape(10, -1).mT
        digits = judges(args.data, args.work)
        rows = [score(image_data.to_float(images[pick.flatten()]), digits, args.data)]
    else:
        rows = drift_rows(args) if args.method == "drift" else flow_rows(args)
    same = {"table": args.table, "method": label, "budget": budget, "seed": args.seed}
    rows = [same | {"judges": len(JUDGES)} | row for row in rows]
    write_results(
        args.work / "rows" / f"{args.name}.json", {"rows": rows, "provenance": provenance()}
    )
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
