r"""The result of a flow: snapshots that can be plotted and saved."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Trajectory"]

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """Snapshots of a flow.

    Args:
        points: [K, ..., N, D] positions.
        times: [K].
        speed: [K], the rms speed at each snapshot.
        stopped: why the flow ended: "steps", "at rest", "callback" or, of `integrate`, "time".
    """

    points: Tensor
    times: Tensor
    speed: Tensor
    stopped: str

    @property
    def end(self) -> Tensor:
        """The last positions, [..., N, D]."""
        return self.points[-1]

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return (
            f"Trajectory({len(self)} snapshots of {list(self.end.shape)}, t = {self.times[0]:g} to "
            f"{self.times[-1]:g}, stopped={self.stopped!r})"
        )

    def plot(self, ax: Axes | None = None, *, count: int = 100) -> Axes:
        """Draw the paths of the first `count` particles and the last positions of all. Needs matplotlib.

        Args:
            ax: where to draw; None: a figure of its own.
            count: how many paths.

        Raises:
            ValueError: unless the flow is of one planar cloud.
        """
        from wgflow import plots

        ax = plots.trajectories(plots.axes() if ax is None else ax, self, count=count)
        return plots.samples(ax, self.end, colour=plots.COLOURS[1])

    def save(self, path: str | Path) -> Path:
        """Write the snapshots to an .npz file of plain arrays, without pickle, whole or not at all.

        Returns:
            The path written, with the suffix .npz.
        """
        path = Path(path)
        path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
        texts = {"stopped": self.stopped, "dtype": str(self.points.dtype).removeprefix("torch.")}
        arrays = {name: np.array(text) for name, text in texts.items()}
        for name in ("points", "times", "speed"):
            t = getattr(self, name).detach().cpu()
            # numpy has no bfloat16; float32 holds its numbers exactly.
            arrays[name] = (t.float() if t.dtype == torch.bfloat16 else t).numpy()
        # Exclusive creation under a random name follows no link; a failed save leaves the earlier file.
        temporary = path.with_name(f".{secrets.token_hex(16)}.tmp")
        try:
            with temporary.open("xb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote; nothing in the file is executed."""
        with np.load(path, allow_pickle=False) as file:
            points, times, speed = (
                torch.from_numpy(file[name]) for name in ("points", "times", "speed")
            )
            # Files of earlier versions have no dtype.
            dtype = DTYPES.get(str(file["dtype"]) if "dtype" in file else "", points.dtype)
            return cls(points.to(dtype), times, speed.to(dtype), str(file["stopped"]))
