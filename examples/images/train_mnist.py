r"""Train a one-step, class-conditional generator of MNIST digits by drifting, encoder included, in ten minutes.

    python examples/images/train_mnist.py --data ~/mnist --out run       # missing files are downloaded
    torchrun --nproc-per-node 2 examples/images/train_mnist.py --data ~/mnist --out run

An encoder is trained first, for half a minute; its activations are the features in which generated digits drift towards
real ones. `run/grid.png` shows progress; the same command resumes a run that was killed, to the bit.
Evaluate with `benchmarks/mnist.py`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import image_data
import torch
import torch.distributed as dist
from encoders import Encoder, train_classifier, train_masked
from image_data import save, to_float
from named_fields import field_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import wgflow as wg


@dataclass(frozen=True)
class Settings:
    field: str = "published:.02,.05,.2"
    features: bool = True  # False: pixels alone
    logits: float = 4.0  # weight of the classifier's logits; each other map of features has 1
    steps: int = 1000
    generated: int = 16  # per class and step, over all processes
    positives: int = 64  # per class and step
    guidance: float = 1.0  # largest strength of classifier-free guidance; above 1 with "published"
    width: int = 32  # of the generator
    lr: float = 2e-3  # Adam, cosine decay
    ema: float = 0.99
    encoder: str = "classifier"  # or "masked", an autoencoder without labels
    encoder_steps: int = 600
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        field_of(self.field)
        if not 0 <= self.logits < float("inf"):
            raise ValueError(f"logits is {self.logits}; wanted a weight >= 0.")
        if self.encoder not in ("classifier", "masked"):
            raise ValueError(f'encoder is {self.encoder!r}; wanted "classifier" or "masked".')


class Generator(nn.Module):
    """Noise [..., 64], labels [...] and strengths of guidance [...] to images [..., C, size, size] in [-1, 1]."""

    def __init__(self, width: int, channels: int = 1, size: int = 28):
        super().__init__()
        self.label, grid = nn.Embedding(10, 64), (2 * width, size // 4, size // 4)
        cells = torch.Size(grid).numel()
        self.dense = nn.Sequential(nn.Linear(129, 256), nn.SiLU(), nn.Linear(256, cells))
        conv = lambda i, o: (nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(4, o), nn.SiLU())
        self.decode = nn.Sequential(
            nn.Unflatten(1, grid),
            *conv(2 * width, 2 * width), nn.Upsample(scale_factor=2),
            *conv(2 * width, width), *conv(width, width),
            nn.Conv2d(width, width, 3, padding=1), nn.PixelShuffle(2), nn.SiLU(),
            *conv(width // 4, width // 4), nn.Conv2d(width // 4, channels, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor, labels: Tensor, strength: Tensor) -> Tensor:
        inputs = torch.cat([z, self.label(labels), strength.log().unsqueeze(-1)], -1)
        return self.decode(self.dense(inputs.flatten(0, -2))).unflatten(0, labels.shape)


def networks(cfg: Settings) -> tuple[Encoder, Generator]:
    torch.manual_seed(cfg.seed)
    return Encoder(), Generator(cfg.width)


def train(
    cfg: Settings, images: Tensor, labels: Tensor, encoder: Encoder, net: nn.Module, out: Path
) -> nn.Module:
    """Train the encoder on half of the images, then the generator on all; returns its averaged weights."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    out.mkdir(parents=True, exist_ok=True)
    encoder, net = encoder.to(device), net.to(device)
    trained = out / f"encoder-{cfg.encoder}-{cfg.encoder_steps}-seed{cfg.seed}.pt"
    if rank == 0 and not trained.exists():
        known = images[: (half := len(images) // 2)].to(device)  # the other half is for a judge
        torch.manual_seed(cfg.seed)
        if cfg.encoder == "masked":
            train_masked(encoder, known, cfg.encoder_steps)
        else:
            train_classifier(encoder, known, labels[:half].to(device), cfg.encoder_steps)
        save(encoder.state_dict(), trained)
    if world > 1:
        dist.barrier()
    encoder.load_state_dict(torch.load(trained, device, weights_only=True))
    encoder.requires_grad_(False).eval()

    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema))
    adam = torch.optim.Adam(net.parameters(), cfg.lr, (0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, cfg.steps)
    queue = wg.SampleQueue(images.shape[1:], size=512, classes=10, dtype=torch.uint8)
    logits = cfg.logits if cfg.encoder == "classifier" else 0.0
    loss = wg.DriftingLoss(
        field_of(cfg.field),
        features=[partial(encoder.features, logits=logits > 0) if cfg.features else nn.Flatten()],
        weights=encoder.weights(logits) if cfg.features else None,
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
        adam.zero_grad()
        report.loss.backward()
        adam.step()
        decay.step()
        ema.update_parameters(net)
        if rank == 0 and ((step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps):
            state = {"settings": asdict(cfg), "step": step + 1, "random": g.get_state()}
            save(state | {name: part.state_dict() for name, part in parts.items()}, out / "run.pt")
            image_data.save_grid(sample(ema, every[:, None].expand(10, 12)), out / "grid.png")
            print(step + 1, *(f"{k} {v:.4f}" for k, v in report._asdict().items()), flush=True)
    return ema


@torch.no_grad()
def sample(
    net: nn.Module, labels: Tensor, seed: int = 0, guidance: float = 1.0, noise: float = 1.0
) -> Tensor:
    """Images [..., C, H, W] of labels [...], on the CPU; noise below 1 trades variety for fidelity."""
    device = next(net.parameters()).device
    z = noise * torch.randn(*labels.shape, 64, generator=torch.Generator().manual_seed(seed))
    strength = torch.full(labels.shape, guidance)
    return net(z.to(device), labels.to(device), strength.to(device)).cpu()


def main(
    load: Callable[[Path], tuple[Tensor, Tensor]],
    networks: Callable[[Settings], tuple[Encoder, nn.Module]],
    defaults: Settings,
    about: str | None,
) -> None:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the official files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    for name, value in asdict(defaults).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):  # --features, --no-features
            parser.add_argument(flag, default=value, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(flag, default=value, type=type(value))
    options = vars(parser.parse_args())
    data, out = options.pop("data"), options.pop("out")
    try:
        cfg = Settings(**options)
    except ValueError as error:
        parser.error(str(error))
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    images, labels = load(data)
    train(cfg, images, labels, *networks(cfg), out)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(image_data.mnist, networks, Settings(), __doc__)
