"""Film a success and a failure of trained policies: `python benchmarks/films.py RUN [RUN ...] --out docs/pictures`.

Plays fresh episodes of each run until both have been seen, and writes them side by side to film-SUITE.gif: the first
success on the left, the first failure on the right; one alone if the other did not occur.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
from _cli import script_parser
from PIL import Image

from wgflow_rl import envs
from wgflow_rl.agents.agent import Agent
from wgflow_rl.training.rollout import EVAL_SEEDS, Player, draw_chunks, reset_seed
from wgflow_rl.training.settings import Settings
from wgflow_rl.training.trained import FIRST_EPISODE, load_agent

GAP = 4  # px, white, to the right of every frame
FRAMES = 30  # of a film, about
END = 8  # repetitions of the last frame


def play(agent: Agent, player: Player, episode: int, seed: int) -> bool:
    """Play one episode; `player.taken` holds its actions. Returns True after a success."""
    player.start(episode, seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        draw_chunks(agent.act, [player], generator)
        _, _, terminated, truncated, info = player.step()
        if terminated or truncated:
            return bool(info["success"])


def first_outcomes(
    agent: Agent, settings: Settings, *, episodes: int
) -> dict[bool, tuple[int, np.ndarray]]:
    """Start seed and actions of the first success (True) and the first failure (False) among the episodes."""
    found: dict[bool, tuple[int, np.ndarray]] = {}
    with contextlib.closing(settings.make_env()) as env, settings.make_guard() as guard:
        player = Player(env, guard)
        for episode in range(FIRST_EPISODE, FIRST_EPISODE + episodes):
            seed = reset_seed(settings.seed, EVAL_SEEDS, episode)
            outcome = play(agent, player, episode, seed)
            found.setdefault(outcome, (seed, np.array(player.taken)))
            if len(found) == 2:
                break
    return found


def frames(
    settings: Settings, seed: int, actions: np.ndarray, *, every: int, size: int
) -> list[np.ndarray]:
    """Repeat an episode from its start and actions and render every so many steps, and the end."""
    with contextlib.closing(
        settings.make_env(render_mode="rgb_array", width=size, height=size)
    ) as env:
        env.reset(seed=seed)
        seen = [env.render()]
        for number, action in enumerate(actions, start=1):
            env.step(action)
            if number % every == 0 or number == len(actions):
                seen.append(env.render())
    return [np.asarray(frame) for frame in seen]


def film(run: Path, out: Path, *, episodes: int, size: int) -> Path:
    """Write the film of a run and return its path."""
    agent, settings, step = load_agent(run)
    found = first_outcomes(agent, settings, episodes=episodes)
    every = max(1, max(len(actions) for _, actions in found.values()) // FRAMES)
    shown = [
        frames(settings, *found[outcome], every=every, size=size)
        for outcome in (True, False)
        if outcome in found
    ]
    length = max(map(len, shown)) + END
    rows = [each + [each[-1]] * (length - len(each)) for each in shown]
    path = out / f"film-{envs.parse(settings.env).suite}.gif"
    margin = ((0, 0), (0, GAP), (0, 0))
    together = [
        np.concatenate([np.pad(frame, margin, constant_values=255) for frame in pair], axis=1)
        for pair in zip(*rows, strict=True)
    ]
    # An octree keeps the colour of small objects; the median cut paints a red cube on a dark table grey.
    images = [
        Image.fromarray(frame).quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        for frame in together
    ]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, loop=0)
    steps = {("failure", "success")[k]: len(actions) for k, (_, actions) in found.items()}
    print(f"{path}: {settings.method}, {settings.env}, step {step}, seed {settings.seed}, {steps}")
    return path


@torch.no_grad()
def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--episodes", type=int, default=50, help="at most, per run")
    parser.add_argument("--size", type=int, default=144, help="px of a frame")
    ask = parser.parse_args()
    ask.out.mkdir(parents=True, exist_ok=True)
    for run in ask.runs:
        film(run, ask.out, episodes=ask.episodes, size=ask.size)


if __name__ == "__main__":
    main()
