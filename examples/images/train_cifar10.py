r"""Train a one-step, class-conditional generator of CIFAR-10 images: a configuration for one GPU or several.

    torchrun --nproc-per-node 4 examples/images/train_cifar10.py --data ~/cifar10 --out run

The objective is that of drifting models (Deng et al. 2026): their field with guidance, 64 generated and 64 real images
per class and step, features of a masked autoencoder that needs no labels. The networks are those for MNIST, larger.
**It has never been run to the end**: tests train it for some steps on generated files.
"""

import torch
from encoders import Encoder
from image_data import cifar10
from train_mnist import Generator, Settings, main

DEFAULTS = Settings(
    field="published:.02,.05,.2",
    steps=50_000,
    generated=64,
    positives=64,
    guidance=4.0,
    width=128,
    lr=2e-4,
    ema=0.999,
    encoder="masked",
    encoder_steps=20_000,
    save_every=500,
)


def networks(cfg: Settings) -> tuple[Encoder, Generator]:
    torch.manual_seed(cfg.seed)
    return Encoder(3, 32, (64, 128, 256)), Generator(cfg.width, 3, 32)


if __name__ == "__main__":
    main(cifar10, networks, DEFAULTS, __doc__)
