"""Draw the pictures of docs/introduction.md: `python docs/pictures/draw.py`, beside this file."""

import itertools
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import wgflow as wg
from wgflow import plots

HERE = Path(__file__).resolve().parent
GENERATED, _, DATA, BEST, _ = plots.COLOURS
PULL, PUSH = "#d1495b", "#66a182"
BOX = (-2.2, 2.2, -1.6, 1.6)
KERNEL = wg.Gaussian(0.5)


def arrow(ax, start, vector, colour, *, width=1.0, zorder=3):
    ax.annotate(
        "",
        xy=(start + vector).tolist(),
        xytext=start.tolist(),
        arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0
        },
        zorder=zorder,
    )  # fmt: skip


def drifting_field() -> None:
    """Two pulls on one point, the field at every point, and where it leads."""
    generator = torch.Generator().manual_seed(4)
    angle = torch.rand(120, generator=generator) * 6.2832
    data = torch.stack([1.5 * angle.cos(), angle.sin()], -1)
    data = data + 0.08 * torch.randn(120, 2, generator=generator)
    x = 0.35 * torch.randn(60, 2, generator=generator) + torch.tensor([0.3, 0.1])
    towards, away = wg.mean_shift(x, data, kernel=KERNEL), -wg.mean_shift(x, x, kernel=KERNEL)
    # The point that shows both parts best: long ones, at an angle.
    area = (towards[:, 0] * away[:, 1] - towards[:, 1] * away[:, 0]).abs()
    one = int(area.argmax())
    _, axes = plots.panels(
        "the two parts at one point", "the field at every point", "after following it",
        box=BOX, size=3.2,
    )  # fmt: skip
    for ax in axes:
        plots.samples(ax, data, colour=DATA, size=12)
    for ax in axes[:2]:
        plots.samples(ax, x, colour=GENERATED, size=12)
    arrow(axes[0], x[one], towards[one], PULL, width=1.8)
    arrow(axes[0], x[one], away[one], PUSH, width=1.8)
    arrow(axes[0], x[one], towards[one] + away[one], "0.1", width=2.2)
    labels = (("towards the data", PULL), ("away from the others", PUSH), ("their sum", "0.1"))
    for row, (label, colour) in enumerate(labels):
        axes[0].text(-2.1, -1.5 + 0.2 * row, label, color=colour, fontsize=9)
    for point, velocity in zip(x, towards + away, strict=True):
        arrow(axes[1], point, 0.4 * velocity, "0.25", width=0.8)
    path = wg.flow(lambda x: wg.drifting_field(x, data, x, kernel=KERNEL), x, steps=400)
    plots.trajectories(axes[2], path, count=60, colour="0.75")
    plots.samples(axes[2], path.end, colour=GENERATED, size=12)
    plt.savefig(HERE / "drifting_field.png", dpi=130)


def positive() -> None:
    """Many positives of one distribution; one positive per state."""
    generator = torch.Generator().manual_seed(1)
    figure, (many, one) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    pos = 0.25 * torch.randn(60, 2, generator=generator) + torch.tensor([0.9, 0.3])
    x = 0.3 * torch.randn(12, 2, generator=generator) + torch.tensor([-0.9, -0.3])
    plots.samples(many, pos, colour=DATA, size=22, label="positives")
    plots.samples(many, x, colour=GENERATED, size=22, label="generated points")
    for point, velocity in zip(x, wg.energy_field(x, pos), strict=True):
        arrow(many, point, 0.4 * velocity, "0.3", width=0.9)
    many.set(xlim=BOX[:2], ylim=BOX[2:], xticks=[], yticks=[])
    many.set_title("samples of one distribution: many positives")
    for state in range(6):
        branch = 1.0 if state in (0, 1, 3, 4) else -1.0
        at = torch.tensor([state, branch * (0.55 + 0.06 * state)])
        beside = state + torch.tensor([-0.27, -0.09, 0.09, 0.27])  # apart, to be seen
        group = torch.stack([beside, 0.45 * torch.randn(4, generator=generator)], -1)
        one.axvspan(state - 0.38, state + 0.38, color="0.95", zorder=0)
        first = state == 0
        plots.samples(one, at[None], colour=DATA, size=60, label="positive" if first else None)
        plots.samples(one, group, colour=GENERATED, size=22, label="generated" if first else None)
        for point, velocity in zip(group, wg.energy_field(group[:, 1:], at[None, 1:]), strict=True):
            arrow(one, point, torch.cat([torch.zeros(1), 0.35 * velocity]), "0.3", width=0.9)
    one.set(xlim=(-0.6, 5.6), ylim=(-1.5, 2.2), yticks=[], xticks=range(6), xlabel="state")
    one.set_ylabel("action")
    one.set_title("a policy: one positive per state")
    for ax in (many, one):
        place = {"loc": "lower right"} if ax is many else {"loc": "upper center", "ncols": 2}
        ax.legend(fontsize=8, framealpha=0.9, **place)
    figure.savefig(HERE / "positive.png", dpi=130)


def chunk() -> None:
    """Five actions of one observation; candidates, and the best of them."""
    generator = torch.Generator().manual_seed(2)
    figure, (path, fan) = plt.subplots(
        1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=(5, 2.9)
    )
    t = torch.linspace(0, 1, 16)
    at = torch.stack([4.4 * t - 2.2, 0.9 * torch.sin(5.5 * t)], -1)
    for k, (start, end) in enumerate(itertools.pairwise(at)):
        colour = plots.COLOURS[(0, 1, 3)[k // 5]]
        arrow(path, start, end - start, colour, width=1.8)
        if k % 5 == 0:
            path.plot(*start, "o", color=colour, markersize=9, zorder=4)
            path.annotate(
                "observes", start.tolist(), textcoords="offset points", xytext=(-12, -17),
                fontsize=8, ha="right" if k else "left",
            )  # fmt: skip
        middle, along = (start + end) / 2, (end - start) / (end - start).norm()
        beside = (-11 * along[1].item(), 11 * along[0].item())  # to the left of the arrow
        path.annotate(
            f"{k % 5 + 1}", middle.tolist(), textcoords="offset points", xytext=beside, fontsize=8,
            color=colour, ha="center", va="center",
        )  # fmt: skip
    path.set(xlim=(-2.5, 2.5), ylim=(-1.2, 1.3))
    path.set_title("three chunks of five actions")
    turns = 0.5 * torch.randn(24, 1, generator=generator) * torch.linspace(0.4, 1, 5)
    angle = 0.3 + turns.cumsum(-1)
    steps = 0.36 * torch.stack([angle.cos(), angle.sin()], -1)
    chunks = torch.cat([torch.zeros(24, 1, 2), steps.cumsum(-2)], -2) + torch.tensor([-1.0, -0.5])
    goal = torch.tensor([0.6, 0.2])
    value = -(chunks[:, -1] - goal).norm(dim=-1)
    best = value.topk(4).indices.tolist()
    for i, line in enumerate(chunks):
        kept = i in best
        fan.plot(
            *line.T, "-o", markersize=3, color=BEST if kept else "0.75", zorder=3 if kept else 2,
            linewidth=2 if kept else 1,
        )  # fmt: skip
    fan.plot(*goal, "*", color=DATA, markersize=18, zorder=4)
    fan.plot(-1.0, -0.5, "o", color=GENERATED, markersize=9, zorder=4)
    fan.annotate("goal", goal.tolist(), textcoords="offset points", xytext=(10, 6), fontsize=8)
    fan.set(xlim=(-1.2, 1.1), ylim=(-1.35, 0.75))
    fan.set_title("24 candidates in one state")
    for ax in (path, fan):
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color="0.8")
    figure.savefig(HERE / "chunk.png", dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    plt.switch_backend("agg")
    plt.style.use(plots.STYLE)
    drifting_field()
    positive()
    chunk()
