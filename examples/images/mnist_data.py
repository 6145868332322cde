"""MNIST: the four official files, downloaded, checked and read; checkpoints, and pictures of grids of digits."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import torch
from torch import Tensor

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {  # name: sha256
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def read_idx(path: Path) -> Tensor:
    """An idx file of bytes: two zeros, 8 for uint8, the number of dimensions, each dimension as 4 bytes, the values."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes; download it again.")
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    values = torch.frombuffer(bytearray(raw[4 + 4 * raw[3] :]), dtype=torch.uint8)
    if len(values) != torch.Size(shape).numel():
        raise ValueError(f"{path} holds {len(values)} values, not {shape}; download it again.")
    return values.reshape(shape)


def load(folder: Path, part: str = "train") -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28] uint8 and labels [N] of "train" or "t10k"; missing files are downloaded and checked."""
    for name in (n for n in FILES if n.startswith(part) and not (folder / n).exists()):
        folder.mkdir(parents=True, exist_ok=True)
        # Written under another name first, and renamed once its checksum is right.
        torch.hub.download_url_to_file(MIRROR + name, str(folder / name), hash_prefix=FILES[name])
    images, labels = (read_idx(folder / name) for name in FILES if name.startswith(part))
    return images.unsqueeze(1), labels.long()


def to_float(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def save(state: dict, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def save_grid(images: Tensor, path: Path) -> None:
    """Write images [rows, columns, 1, H, W] in [-1, 1] as one gray picture."""
    from matplotlib.image import imsave

    rows = [torch.cat(tuple(row[:, 0]), -1) for row in images]
    part = path.with_suffix(".part.png")
    imsave(part, torch.cat(rows).clamp(-1, 1).numpy(), cmap="gray", vmin=-1, vmax=1)
    os.replace(part, path)
