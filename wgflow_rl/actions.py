"""A picture of what a policy would do in one state: `python -m wgflow_rl.actions RUN --state 3 --out actions.png`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from wgflow_rl.agents.agent import Agent
from wgflow_rl.evaluate import load_agent, visited
from wgflow_rl.utils.cli import one_line_errors
from wgflow_rl.utils.colours import INK, RULE
from wgflow_rl.utils.files import publish

EXECUTED = 40  # draws of what is executed


@dataclass(frozen=True)
class Args:
    """Draw the chunks that the policy of a run's last checkpoint proposes in one state, and those it executes."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    state: int = 0
    """Which state of the policy's own first episodes: the number of chunks executed before it."""
    samples: int = 400
    """Chunks proposed."""
    out: Path | None = None
    """The PNG to write. Without it: actions.png in the run's folder."""

    def check(self) -> Args:
        """Raises: ValueError naming the first flag that cannot be used."""
        if self.state < 0:
            raise ValueError(f"--state is {self.state}; wanted at least 0")
        if self.samples < 3:
            raise ValueError(f"--samples is {self.samples}; wanted at least 3")
        if self.out is not None and self.out.suffix != ".png":
            raise ValueError(f"--out is {self.out}; wanted a name that ends in .png")
        return self


def chunks(agent: Agent, state: Tensor, count: int) -> np.ndarray:
    """`count` chunks for the state [S], as `act` gives them: [count, C], C = h A."""
    drawn = agent.act(state.expand(count, -1), torch.Generator().manual_seed(0))
    return drawn.flatten(1).cpu().numpy()


def values(agent: Any, state: Tensor, of: np.ndarray) -> np.ndarray | None:
    """Q of the chunks [n, C] in the state [S], [n]; None for an agent without a critic."""
    if not hasattr(agent, "critic"):
        return None
    with torch.no_grad():
        obs = agent.normalise(state[None].to(agent.device))
        return (
            agent.critic.mean(obs, torch.as_tensor(of, device=agent.device)[None])[0].cpu().numpy()
        )


def principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean [C], the two axes of largest variance [2, C], their shares of it [2]) of x [n, C]; a second axis of a
    single coordinate is zero.
    """
    mean = x.mean(0)
    _, size, axes = np.linalg.svd(x - mean, full_matrices=False)
    two = np.zeros((2, x.shape[1]))
    two[: len(axes)] = axes[:2]
    share = np.zeros(2)
    share[: len(size)] = (size**2)[:2] / max((size**2).sum(), 1e-12)
    return mean, two, share


def draw(
    proposed: np.ndarray, executed: np.ndarray, value: np.ndarray | None, path: Path, title: str
) -> Path:
    """Write the PNG: chunks on the two axes along which the proposals differ most, coloured by value [n] if known."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,  # no pyplot: no global state, no window
    )
    from matplotlib.figure import Figure

    mean, axes_of, share = principal(proposed)
    at = (proposed - mean) @ axes_of.T
    done = (executed - mean) @ axes_of.T
    figure = Figure(figsize=(6.4, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colour = {"color": "#0072B2"} if value is None else {"c": value, "cmap": "viridis"}
    points = axes.scatter(
        *at.T, s=12, alpha=0.75, linewidths=0, label=f"proposed ({len(at)})", **colour
    )
    axes.scatter(
        *done.T,
        s=46,
        facecolors="none",
        edgecolors="#D55E00",
        linewidths=1.1,
        label=f"executed ({len(done)})",
    )
    if value is not None:
        figure.colorbar(points, label="Q", shrink=0.85)
    for set_label, of in ((axes.set_xlabel, 0), (axes.set_ylabel, 1)):
        set_label(
            f"axis {of + 1} of the chunks ({share[of]:.0%} of their variance)",
            fontsize=9,
            color=INK,
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    axes.legend(frameon=False, fontsize=8.5)
    axes.set_title(title, fontsize=10, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    publish(temporary, path)
    return path


def picture(args: Args) -> Path:
    """Draw the state asked for; the path of the picture."""
    agent, settings, step = load_agent(args.run)
    state = visited(agent, settings, args.state + 1)[-1]
    # With one proposal nothing is chosen: what the policy itself would do.
    plain = (
        load_agent(args.run, act_samples=1)[0] if hasattr(settings.agent, "act_samples") else agent
    )
    proposed, executed = chunks(plain, state, args.samples), chunks(agent, state, EXECUTED)
    title = f"{settings.method}, {settings.env}\nstep {step}, state {args.state}"
    path = args.out or args.run / "actions.png"
    return draw(proposed, executed, values(agent, state, proposed), path, title)


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, prog="python -m wgflow_rl.actions")
    with one_line_errors():
        print(picture(args.check()))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
