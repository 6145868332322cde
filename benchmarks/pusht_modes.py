"""Draw the action chunks of PushT policies at the symmetric start, a panel per run (title: method and field).

    python benchmarks/pusht_modes.py RUN [RUN ...] --out docs/pictures

Both ways around the block are equally good there, and demonstrators take both. Writes pusht-modes.png.
"""

from pathlib import Path

import numpy as np
import torch
from _cli import script_parser

from wgflow_rl.agents.agent import Agent
from wgflow_rl.envs.pusht import SYMMETRIC_START, unscale
from wgflow_rl.training.settings import Settings
from wgflow_rl.training.trained import load_agent

CHUNKS = 100  # drawn
SIZE = 512  # px of the scene


def start(settings: Settings, state: tuple[float, ...] | None = None, **options):
    """An environment at a state, or at the first published start, and its observation."""
    env = settings.make_env(render_mode="rgb_array", **options)
    obs, _ = env.reset(seed=100_000, options=None if state is None else {"state": state})
    return env, torch.as_tensor(obs)


def chunks(agent: Agent, obs: torch.Tensor, count: int) -> np.ndarray:
    """Predicted chunks [count, T, 2] in px."""
    states = agent.normalise(obs.expand(count, -1))
    with torch.no_grad(), agent.averaged():
        latent = agent.draw_latent(states, 1, torch.Generator().manual_seed(0))
        return unscale(agent.sample(states, latent).reshape(count, -1, 2).numpy())


def draw_modes(runs: list[tuple[Agent, Settings, int]], path: Path) -> None:
    """Draw the chunks of each policy over the scene, one line each, coloured by the side of the axis of symmetry from
    which they are furthest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(runs), 3.7), dpi=120, layout="constrained")
    for axes, (agent, settings, step) in zip(
        np.atleast_1d(figure.subplots(1, len(runs))), runs, strict=True
    ):
        env, obs = start(settings, SYMMETRIC_START, width=SIZE, height=SIZE)
        axes.imshow(env.render())
        env.close()
        drawn = chunks(agent, obs, CHUNKS)
        beside = drawn.sum(-1) - 512  # [count, T], signed; the axis of symmetry is x + y = 512
        furthest = np.take_along_axis(beside, abs(beside).argmax(-1)[:, None], -1)[:, 0]
        for chunk, side in zip(drawn, furthest, strict=True):
            colour = "#c2410c" if side > 0 else "#1d4ed8"
            axes.plot(*chunk.T, color=colour, alpha=0.25, linewidth=0.9)
        axes.set_xlabel(f"{(furthest > 0).sum()} orange, {(furthest <= 0).sum()} blue", fontsize=9)
        field = getattr(settings.agent, "field", "")
        mirror = "" if settings.schedule.mirror else ", not mirrored"
        title = f"{settings.method} {field}".strip()
        axes.set_title(f"{title}, {step:,} updates{mirror}", fontsize=9)
        axes.set(xlim=(0, SIZE), ylim=(SIZE, 0), xticks=[], yticks=[])
    figure.savefig(path)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    ask = parser.parse_args()
    loaded = [load_agent(run) for run in ask.runs]
    ask.out.mkdir(parents=True, exist_ok=True)
    draw_modes(loaded, ask.out / "pusht-modes.png")
    print(ask.out / "pusht-modes.png")


if __name__ == "__main__":
    main()
