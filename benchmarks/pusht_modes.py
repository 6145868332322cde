"""Draw a PushT policy: its action chunks at the symmetric start as clouds, and a film of one episode.

    python benchmarks/pusht_modes.py RUN [RUN ...] --out docs/pictures

Both ways around the block are equally good at the symmetric start, and demonstrators take both. Writes pusht-modes.png,
a panel per run (title: method and field), and pusht.gif of the first run.
"""

import argparse
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch

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
    """Draw the chunks of each policy over the scene, one line each, coloured by the side they take."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(runs), 3.7), dpi=120, layout="constrained")
    for axes, (agent, settings, step) in zip(
        np.atleast_1d(figure.subplots(1, len(runs))), runs, strict=True
    ):
        env, obs = start(settings, SYMMETRIC_START, width=SIZE, height=SIZE)
        axes.imshow(env.render())
        env.close()
        agent_at = np.array(SYMMETRIC_START[:2])
        for chunk in chunks(agent, obs, CHUNKS):
            # The axis of symmetry is x + y = 512.
            side = "#c2410c" if (chunk[-1] - agent_at).sum() > 0 else "#1d4ed8"
            axes.plot(*chunk.T, color=side, alpha=0.25, linewidth=0.9)
        field = getattr(settings.agent, "field", "")
        mirror = "" if settings.schedule.mirror else ", not mirrored"
        title = f"{settings.method} {field}".strip()
        axes.set_title(f"{title}, {step:,} updates{mirror}", fontsize=9)
        axes.set(xlim=(0, SIZE), ylim=(SIZE, 0), xticks=[], yticks=[])
    figure.savefig(path)


def film(agent: Agent, settings: Settings, path: Path, *, most: int = 300) -> None:
    """Play the first published start and write every second frame."""
    env, obs = start(settings, width=160, height=160)
    generator, frames, done = torch.Generator().manual_seed(0), [env.render()], False
    while not done and len(frames) < most:
        for action in agent.act(obs[None], generator)[0].numpy():
            seen, _, terminated, truncated, _ = env.step(action)
            frames.append(env.render())
            obs, done = torch.as_tensor(seen), terminated or truncated
            if done:
                break
    env.close()
    imageio.mimsave(path, frames[::2] + [frames[-1]] * 8, duration=0.1, loop=0, subrectangles=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    ask = parser.parse_args()
    loaded = [load_agent(run) for run in ask.runs]
    ask.out.mkdir(parents=True, exist_ok=True)
    draw_modes(loaded, ask.out / "pusht-modes.png")
    agent, settings, _ = loaded[0]
    film(agent, settings, ask.out / "pusht.gif")
    print(ask.out / "pusht-modes.png", ask.out / "pusht.gif")


if __name__ == "__main__":
    main()
