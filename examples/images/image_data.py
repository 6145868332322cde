"""MNIST and CIFAR-10 from their official files, downloaded and checked; checkpoints; pictures of grids of images."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
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


def mnist(folder: Path, part: str = "train") -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28] uint8 and labels [N] of "train" or "t10k"; missing files are downloaded and checked."""
    for name in (n for n in FILES if n.startswith(part) and not (folder / n).exists()):
        folder.mkdir(parents=True, exist_ok=True)
        # Written under another name first, and renamed once its checksum is right.
        torch.hub.download_url_to_file(MIRROR + name, str(folder / name), hash_prefix=FILES[name])
    images, labels = (read_idx(folder / name) for name in FILES if name.startswith(part))
    return images.unsqueeze(1), labels.long()


CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as its page states


def cifar10(folder: Path, part: str = "train") -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] uint8 and labels [N] of "train" or "test", from the .bin files or their archive.

    A record is its label, then 1,024 bytes each of red, green and blue. A missing archive is downloaded and checked.
    """
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if part == "train" else ["test_batch.bin"]
    if not all((folder / name).exists() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / CIFAR10.rsplit("/", 1)[1]
        if not archive.exists():
            torch.hub.download_url_to_file(CIFAR10, str(archive))
        if hashlib.md5(archive.read_bytes()).hexdigest() != CIFAR10_MD5:
            raise ValueError(f"{archive} is not the official archive; delete it and try again.")
        with tarfile.open(archive) as files:
            for member in (m for m in files if m.isfile() and m.name.endswith(".bin")):
                with files.extractfile(member) as source:
                    write_whole(folder / Path(member.name).name, source.read())
    batches = []
    for name in names:
        raw = (folder / name).read_bytes()
        if not raw or len(raw) % 3073:
            raise ValueError(
                f"{folder / name} holds {len(raw)} bytes, no multiple of 3,073; extract it again."
            )
        batches.append(torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 3073))
    records = torch.cat(batches)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def to_float(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def save(state: dict, path: Path) -> None:
    """Write a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def save_grid(images: Tensor, path: Path) -> None:
    """Write images [rows, columns, C, H, W] in [-1, 1] as one picture; C is 1 or 3."""
    from matplotlib.image import imsave

    rows = torch.cat([torch.cat(tuple(row), -1) for row in images], -2)  # [C, height, width]
    pixels = ((rows.clamp(-1, 1) + 1) / 2).expand(3, -1, -1).permute(1, 2, 0)
    buffer = io.BytesIO()
    imsave(buffer, pixels.contiguous().numpy(), format="png")
    write_whole(path, buffer.getvalue())
