r"""Train a one-step, class-conditional generator of MNIST digits by drifting, encoder included, in ten minutes.

    python examples/images/train_mnist.py --data ~/mnist --out run       # missing files are downloaded
    torchrun --nproc-per-node 2 examples/images/train_mnist.py --data ~/mnist --out run

A small classifier is trained for a minute first; its activations are the features in which generated digits drift
towards real ones. `run/grid.png` shows progress; the same command resumes a run that was killed, to the bit.
Evaluate with `benchmarks/mnist.py`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import mnist_data
import torch
import torch.distributed as dist
from mnist_data import save, to_float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import wgflow as wg

FIELDS = {  # lengths are fractions of the mean distance between generated and real features
    "energy:.5": wg.EnergyField(0.5).standardized(),
    "energy:1": wg.EnergyField(1.0).standardized(),
    "published": wg.PublishedField(),
    "likelihood": wg.LikelihoodField([wg.Gaussian(0.1), wg.Gaussian(0.3)]).standardized(),
    "mmd": wg.MMDField([wg.Laplace(0.1), wg.Laplace(0.5)]).standardized(),
    "drift": wg.DriftingField(wg.Gaussian(0.2), skip_self=True).standardized(),
}


@dataclass(frozen=True)
class Settings:
    field: str = "energy:.5"
    features: bool = True  # False: pixels alone
    steps: int = 400
    generated: int = 16  # per class and step, over all processes
    positives: int = 32  # per class and step
    guidance: float = 1.0  # largest strength of classifier-free guidance; above 1 with "published"
    lr: float = 1e-3  # Adam, cosine decay
    ema: float = 0.99
    encoder_steps: int = 600
    seed: int = 0
    save_every: int = 50


class Encoder(nn.Module):
    """A classifier of images [n, 1, 28, 28]; `features` returns its activations as maps [n, locations, F]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.GELU())  # [n, 32, 14, 14]
        self.conv2 = nn.Sequential(nn.Conv2d(32, 64, 4, 2, 1), nn.GELU())  # [n, 64, 7, 7]
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(64 * 49, 128), nn.GELU())
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dense(self.conv2(self.conv1(images))))

    def features(self, images: Tensor) -> list[Tensor]:
        one = self.conv1(images)
        two = self.conv2(one)
        coarse = [nn.functional.avg_pool2d(one, 2), two]
        maps = [m for c in coarse for m in wg.patch_features(c, patches=())]
        return [images.flatten(1), *maps, self.dense(two)]


def train_encoder(images: Tensor, labels: Tensor, steps: int, seed: int) -> Encoder:
    """Train the classifier on noisy, shifted digits."""
    torch.manual_seed(seed)
    encoder = Encoder().to(images.device)
    adam = torch.optim.AdamW(encoder.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=max(steps, 2))
    for _ in range(steps):
        pick = torch.randint(len(images), (128,), device=images.device)
        x = to_float(images[pick]).roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (-2, -1))
        loss = cross_entropy(encoder(x + 0.3 * torch.randn_like(x)), labels[pick])
        descend(loss, adam, decay)
    return encoder.requires_grad_(False).eval()


class Generator(nn.Module):
    """Noise [..., 64], labels [...] and strengths of guidance [...] to images [..., 1, 28, 28] in [-1, 1]."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.label = nn.Embedding(10, 64)
        self.dense = nn.Sequential(nn.Linear(129, 256), nn.SiLU(), nn.Linear(256, 2 * width * 49))
        conv = lambda i, o: (nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(8, o), nn.SiLU())
        self.decode = nn.Sequential(
            nn.Unflatten(1, (2 * width, 7, 7)),
            *conv(2 * width, 2 * width), nn.Upsample(scale_factor=2),
            *conv(2 * width, width), *conv(width, width),
            nn.Conv2d(width, width, 3, padding=1), nn.PixelShuffle(2), nn.SiLU(),
            *conv(width // 4, width // 4), nn.Conv2d(width // 4, 1, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor, labels: Tensor, strength: Tensor) -> Tensor:
        inputs = torch.cat([z, self.label(labels), strength.log().unsqueeze(-1)], -1)
        return self.decode(self.dense(inputs.flatten(0, -2))).unflatten(0, labels.shape)


def descend(loss: Tensor, optimiser, schedule) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()


def train(cfg: Settings, data: Path, out: Path) -> nn.Module:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    images, labels = mnist_data.load(data)
    out.mkdir(parents=True, exist_ok=True)
    if rank == 0 and not (out / "encoder.pt").exists():
        half = (t[:30_000].to(device) for t in (images, labels))  # the others are for a judge
        encoder = train_encoder(*half, cfg.encoder_steps, cfg.seed)
        save(encoder.state_dict(), out / "encoder.pt")
    if world > 1:
        dist.barrier()
    encoder = Encoder().to(device).requires_grad_(False)
    encoder.load_state_dict(torch.load(out / "encoder.pt", device, weights_only=True))

    torch.manual_seed(cfg.seed)
    net = Generator().to(device)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema))
    adam = torch.optim.Adam(net.parameters(), cfg.lr, (0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, cfg.steps)
    queue = wg.SampleQueue(images.shape[1:], size=512, classes=10, dtype=torch.uint8)
    loss = wg.DriftingLoss(
        FIELDS[cfg.field],
        features=[encoder.features if cfg.features else nn.Flatten()],
        group=dist.group.WORLD if world > 1 else None,
    )
    g = torch.Generator().manual_seed(cfg.seed)  # the same on every process, which takes its share
    parts, first = {"net": net, "ema": ema, "adam": adam, "decay": decay, "queue": queue}, 0
    if (out / "run.pt").exists():
        state = torch.load(out / "run.pt", device, weights_only=True)
        if state["settings"] != asdict(cfg):
            raise SystemExit(f"{out} holds a run of other settings: {state['settings']}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        g.set_state(state["random"].cpu())
        first = state["step"]
    else:
        queue.push(images[:10_000], labels[:10_000])
    model = DistributedDataParallel(net) if world > 1 else net
    every, share = torch.arange(10), lambda n: slice(rank * n // world, (rank + 1) * n // world)
    for step in range(first, cfg.steps):
        pick = torch.randint(len(images), (64,), generator=g)
        queue.push(images[pick], labels[pick])
        pos = queue.draw(cfg.positives, every, generator=g)[:, share(cfg.positives)].to(device)
        z = torch.randn(10, cfg.generated, 64, generator=g)[:, share(cfg.generated)].to(device)
        strength, guidance = torch.ones(10), ()
        if cfg.guidance > 1:
            strength = wg.draw_guidance(10, largest=cfg.guidance, generator=g)
            neg = queue.draw(4, every, generator=g).flatten(0, 1)[share(40)]
            guidance = to_float(neg.to(device)), strength.to(device)
        given = [t.to(device)[:, None].expand(z.shape[:2]) for t in (every, strength)]
        report = loss(model(z, *given), to_float(pos), *guidance)
        descend(report.loss, adam, decay)
        ema.update_parameters(net)
        if rank == 0 and ((step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps):
            state = {"settings": asdict(cfg), "step": step + 1, "random": g.get_state()}
            save(state | {name: part.state_dict() for name, part in parts.items()}, out / "run.pt")
            mnist_data.save_grid(sample(ema, every[:, None].expand(10, 12)), out / "grid.png")
            print(step + 1, *(f"{k} {v:.4f}" for k, v in report._asdict().items()), flush=True)
    return ema


@torch.no_grad()
def sample(net: nn.Module, labels: Tensor, seed: int = 0, guidance: float = 1.0) -> Tensor:
    """Images [..., 1, 28, 28] of labels [...], on the CPU."""
    device = next(net.parameters()).device
    z = torch.randn(*labels.shape, 64, generator=torch.Generator().manual_seed(seed))
    strength = torch.full(labels.shape, guidance)
    return net(z.to(device), labels.to(device), strength.to(device)).cpu()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    for f in fields(Settings):
        kind = type(f.default) if not isinstance(f.default, bool) else lambda s: s == "True"
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=kind, default=f.default)
    options = vars(parser.parse_args())
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train(data=options.pop("data"), out=options.pop("out"), cfg=Settings(**options))
    if dist.is_initialized():
        dist.destroy_process_group()
