"""Train one agent offline, then online: `python -m wgflow_rl.train [--env ...]`; continue with `--resume DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from wgflow_rl.training.loop import run
from wgflow_rl.training.settings import Settings, from_command_line
from wgflow_rl.training.trained import load_agent, run_episodes
from wgflow_rl.utils.cli import one_line_errors


def main(args: list[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    resume = any(arg.partition("=")[0] == "--resume" for arg in args)
    with one_line_errors():
        settings = Settings.resumed(args) if resume else from_command_line(args)
        run(settings, resume=resume)
        if settings.machine.film:
            film(settings.folder)


def film(folder: Path) -> None:
    """Film four episodes of a run that has ended. A failure is a warning, since the run is complete without."""
    try:
        agent, settings, _ = load_agent(folder)
        run_episodes(agent, settings, 4, shown=4, video=folder / "film.mp4")
    except Exception as error:  # of a renderer
        print(
            f"warning: the run is complete, but could not be filmed ({type(error).__name__}: {error}). Where rendering "
            f"works, python -m wgflow_rl.evaluate {folder} --video film.mp4 films it.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
