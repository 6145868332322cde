"""A trained run: its agent, and episodes that it plays."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wgflow_rl.agents import presets
from wgflow_rl.agents.agent import Agent
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.envs.rendering import WITHOUT_DISPLAY
from wgflow_rl.training import checkpoint
from wgflow_rl.training.csv_table import read_rows, score_of
from wgflow_rl.training.rollout import EVAL_ENVS, Collector, Evaluation, evaluate
from wgflow_rl.training.settings import Settings
from wgflow_rl.training.snapshot import restore, under
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.files import replacing

FIRST_EPISODE = 1_000_000_000  # episode numbers not used by evaluations during training


def load_agent(
    run: Path, *, best: bool = False, act_samples: int | None = None
) -> tuple[Agent, Settings, int]:
    """Load the agent of a run's newest intact checkpoint, or of its best one.

    Args:
        run: folder of the run.
        best: load the checkpoint with the highest success rate during training, or score where there is one.
        act_samples: N of best-of-N acting; None: as trained.

    Returns:
        The agent, the settings of the run, the step of the checkpoint.

    Raises:
        FileNotFoundError: If the folder has no run or no checkpoint.
        ValueError: If no checkpoint is intact, or if `act_samples` is given for a method without
            best-of-N acting.
    """
    settings = Settings.read(run)
    saved = checkpoint.load(run / "checkpoints", rows=False)
    if best:
        at = best_step(run, saved)
        if at is None:
            raise ValueError(
                f"{run} has no evaluation yet, so no best checkpoint; omit --checkpoint best"
            )
        saved = checkpoint.load(run / "checkpoints", step=at, rows=False)
    step, tensors = saved.step, saved.tensors
    cfg: Any = settings.agent
    if act_samples is not None:
        if not hasattr(cfg, "act_samples"):
            raise ValueError(
                f"--act-samples is {act_samples}, but {settings.method} executes its only chunk; omit the flag"
            )
        cfg = dataclasses.replace(cfg, act_samples=act_samples)
    with contextlib.closing(settings.make_env()) as env:
        agent = build_for(env, cfg)
    restore(agent, under(tensors, "agent"))
    return agent, settings, step


def build_for(env: gymnasium.Env, cfg: AgentConfig, *, seed: int = 0) -> Agent:
    """Build the agent of these settings, on the CPU, with the sizes of an environment."""
    (obs_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape  # type: ignore
    return presets.build(cfg, obs_dim=obs_dim, action_dim=action_dim, seed=seed)


def best_step(run: Path, saved: checkpoint.Checkpoint) -> int | None:
    """Step of the best evaluation, even if recorded after the checkpoint; None without one."""
    at, best = saved.state.get("best", (0, -1.0))
    if saved.state.get("evaluating") is not None:
        _, rows = read_rows(run / "eval.csv")
        for row in rows:
            # Rounded as in the CSV file, so that equal rates compare equal.
            if int(row["step"]) == saved.step and score_of(row) >= float(f"{best:.8g}"):
                return saved.step
    return at if best >= 0 else None


def visited_states(agent: Agent, settings: Settings, count: int) -> Tensor:
    """First `count` states [count, S] in which the agent acts, in its own episodes."""
    seen: list[Tensor] = []

    def act(obs: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(obs[0])
        return agent.act(obs, generator)

    generator = torch.Generator().manual_seed(settings.seed)
    with contextlib.closing(settings.make_env()) as env, settings.make_guard() as guard:
        player = Collector([env], seed=FIRST_EPISODE, guard=guard)
        while len(seen) < count:
            player.step(act, generator)
    return torch.stack(seen)


def run_episodes(
    agent: Agent, settings: Settings, episodes: int, *, shown: int = 0, video: Path | None = None
) -> Evaluation:
    """Play `episodes` fresh episodes; render the first `shown` side by side to `video`.

    The pool of environments is independent of the video, and so are the results.
    """
    count = min(EVAL_ENVS, episodes)
    shown = min(shown, count) if video else 0
    last_frames: dict[int, np.ndarray] = {}

    def add_frame(played: dict[int, int]) -> None:
        """Add a frame while a rendered episode is running; finished ones show their last state."""
        now = {i: _render(pool[i]) for i, episode in played.items() if i == episode and i < shown}
        last_frames.update(now)
        if now:
            write_frame(np.concatenate([last_frames[i] for i in range(shown)], axis=1))

    steps = 0

    def on_step(played: dict[int, int]) -> None:
        nonlocal steps
        steps += len(played)
        bar.n = max(bar.n, max(played.values()) + 1 - len(played))
        bar.set_postfix(steps=steps)
        if shown:
            add_frame(played)

    rendering = {"render_mode": "rgb_array", "width": 320, "height": 320}
    with (
        tqdm(
            total=episodes, unit="episode", disable=None, desc="filming" if shown else "playing"
        ) as bar,
        contextlib.ExitStack() as stack,
    ):
        made = (settings.make_env(**(rendering if i < shown else {})) for i in range(count))
        pool = [stack.enter_context(contextlib.closing(env)) for env in made]
        if video is not None:
            write_frame = stack.enter_context(_film(video))
        guard = stack.enter_context(settings.make_guard())
        result = evaluate(
            agent.act,
            pool,
            episodes=episodes,
            seed=settings.seed,
            first_episode=FIRST_EPISODE,
            guard=guard,
            frame=on_step,
        )
        bar.n = episodes
        bar.refresh()
    return result


def _render(env: gymnasium.Env) -> np.ndarray:
    try:
        frame = np.asarray(env.render())
        if frame.ndim != 3:
            raise TypeError(f"render() returned {frame!r:.60}; wanted an image [height, width, 3]")
    except Exception as error:  # each GL platform raises its own types
        raise UserError(
            f"rendering failed ({type(error).__name__}: {error}). {WITHOUT_DISPLAY}"
        ) from error
    return frame


@contextlib.contextmanager
def _film(path: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that encodes one frame [height, width, 3] of an MP4; no frame is kept in memory."""
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Any
    with (
        replacing(path, suffix=path.suffix) as temporary,
        imageio.get_writer(temporary, fps=30, macro_block_size=2) as writer,
    ):
        yield writer.append_data
