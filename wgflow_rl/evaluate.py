"""Evaluate a trained run on fresh episodes: `python -m wgflow_rl.evaluate RUN --episodes 50`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from wgflow_rl import plugins
from wgflow_rl.training.rollout import EVAL_ENVS
from wgflow_rl.training.runlog import wilson
from wgflow_rl.training.trained import load_agent, run_episodes
from wgflow_rl.utils.cli import one_line_errors
from wgflow_rl.utils.flags import MOST, at_least, at_most


@dataclass(frozen=True)
class Args:
    """Evaluate a checkpoint of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    episodes: int = 50
    checkpoint: Literal["last", "best"] = "last"
    """best: checkpoint with the highest score during training (success rate, where the environment
    has no score), the latest of equal ones."""
    act_samples: int | None = None
    """Execute the best of this many chunks (default: as trained)."""
    video: Path | None = None
    """MP4 of the first episodes. Without a display, set MUJOCO_GL=egl (or osmesa).
    Rendering without a GPU takes minutes; --episodes 1 --video-episodes 1 is fastest."""
    video_episodes: int = 4
    plugin: plugins.Flag = ()

    def check(self) -> Args:
        """Return the arguments. Raises: ValueError naming the first invalid flag."""
        for name in ("episodes", "video_episodes", "act_samples"):
            at_least(1, **{name: getattr(self, name)})
        at_most(MOST, episodes=self.episodes, act_samples=self.act_samples)
        if self.video_episodes > EVAL_ENVS:
            raise ValueError(
                f"--video-episodes is {self.video_episodes}; wanted at most {EVAL_ENVS}, side by side"
            )
        if self.video is not None and self.video.suffix != ".mp4":
            raise ValueError(f"--video is {self.video}; wanted a name that ends in .mp4")
        return self


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, prog="python -m wgflow_rl.evaluate")
    with one_line_errors():
        plugins.load(args.plugin)
        print(json.dumps(report(args.check()), indent=2))


def report(args: Args) -> dict[str, Any]:
    """Play the episodes and return the printed report."""
    agent, settings, step = load_agent(
        args.run, best=args.checkpoint == "best", act_samples=args.act_samples
    )
    result = run_episodes(
        agent, settings, args.episodes, shown=args.video_episodes, video=args.video
    )
    successes = int(result.success.sum())
    low, high = wilson(successes, args.episodes)
    return {
        "run": str(args.run),
        "step": step,
        "episodes": args.episodes,
        "success": successes / args.episodes,
        "interval_95": [round(low, 3), round(high, 3)],
        **({} if result.scores is None else {"score": result.score}),
        "return": float(result.returns.mean()),
        "length": float(result.lengths.mean()),
        **({"video": str(args.video)} if args.video else {}),
    }


if __name__ == "__main__":
    main()
