"""Draw the action chunks of a policy in one state: `python -m wgflow_rl.actions RUN --state 3`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from wgflow_rl import plugins
from wgflow_rl.agents.agent import Agent
from wgflow_rl.training.trained import load_agent, visited_states
from wgflow_rl.utils.cli import one_line_errors
from wgflow_rl.utils.flags import MOST, at_least, at_most
from wgflow_rl.utils.pictures import INK, plain, save

EXECUTED = 40  # number of executed chunks drawn


@dataclass(frozen=True)
class Args:
    """Draw the chunks that a run's policy proposes in one state, and those it executes."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    state: int = 0
    """State of the policy's first episodes, by the number of chunks executed before it."""
    samples: int = 400
    """Number of proposed chunks."""
    out: Path | None = None
    """PNG to write (default: actions.png in the run's folder)."""
    plugin: plugins.Flag = ()

    def check(self) -> Args:
        """Return the arguments. Raises: ValueError naming the first invalid flag."""
        at_least(0, state=self.state)
        at_least(3, samples=self.samples)
        at_most(MOST, state=self.state, samples=self.samples)
        if self.out is not None and self.out.suffix != ".png":
            raise ValueError(f"--out is {self.out}; wanted a name that ends in .png")
        return self


def sample_chunks(agent: Agent, state: Tensor, count: int) -> np.ndarray:
    """Sample `count` chunks of `act` in the state [S]: [count, C], C = h A."""
    drawn = agent.act(state.expand(count, -1), torch.Generator().manual_seed(0))
    return drawn.flatten(1).cpu().numpy()


def values(agent: Any, state: Tensor, of: np.ndarray) -> np.ndarray | None:
    """Values [n] by which the agent ranks chunks [n, C] in the state [S]; None for an agent without a critic."""
    if not hasattr(agent, "critic"):
        return None
    with torch.no_grad():
        obs = agent.normalise(state[None].to(agent.device))
        return agent.q(obs, torch.as_tensor(of, device=agent.device)[None])[0].cpu().numpy()


def principal_axes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First two principal axes of points [n, C].

    Returns:
        Mean [C], axes [2, C], fractions of the variance [2]. For C = 1 the second axis is
            zero.
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
    """Draw chunks on the first two principal axes of the proposals, coloured by value [n]."""
    # No pyplot: it has global state and may open windows.
    from matplotlib.figure import Figure

    mean, axes_of, share = principal_axes(proposed)
    at = (proposed - mean) @ axes_of.T
    done = (executed - mean) @ axes_of.T
    figure = Figure(figsize=(6.4, 4.6), dpi=130, layout="constrained")
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
    plain(axes, grid="both")
    axes.legend(frameon=False, fontsize=8.5)
    axes.set_title(title, fontsize=10, color=INK)
    return save(figure, path)


def run(args: Args) -> Path:
    """Draw the figure and return its path."""
    agent, settings, step = load_agent(args.run)
    state = visited_states(agent, settings, args.state + 1)[-1]
    # Without best-of-N: the proposals of the policy itself.
    policy = load_agent(args.run, act_samples=1)[0] if agent.act_samples > 1 else agent
    proposed = sample_chunks(policy, state, args.samples)
    executed = sample_chunks(agent, state, EXECUTED)
    title = f"{settings.method}, {settings.env}\nstep {step}, state {args.state}"
    path = args.out or args.run / "actions.png"
    return draw(proposed, executed, values(agent, state, proposed), path, title)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, prog="python -m wgflow_rl.actions")
    with one_line_errors():
        plugins.load(args.plugin)
        print(run(args.check()))


if __name__ == "__main__":
    main()
