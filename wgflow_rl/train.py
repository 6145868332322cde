"""Train one agent offline, then online: `python -m wgflow_rl.train [--env ...]`; continue with `--resume DIR`."""

from __future__ import annotations

import sys

from wgflow_rl.evaluate import load_agent, run_episodes
from wgflow_rl.training.loop import run
from wgflow_rl.training.settings import Settings, from_command_line
from wgflow_rl.utils.cli import one_line_errors


def main(args: list[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    resume = any(arg.partition("=")[0] == "--resume" for arg in args)
    with one_line_errors():
        settings = Settings.resumed(args) if resume else from_command_line(args)
        run(settings, resume=resume)
        if settings.machine.film:
            agent, settings, _ = load_agent(settings.folder)
            run_episodes(agent, settings, 4, shown=4, video=settings.folder / "film.mp4")


if __name__ == "__main__":
    main()
