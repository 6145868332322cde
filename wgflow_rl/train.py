"""Offline, then online training of one agent: `python -m wgflow_rl.train [--env ...]`, continued by `--resume DIR`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from wgflow_rl import envs
from wgflow_rl.envs.guard import Guard
from wgflow_rl.envs.workers import environments
from wgflow_rl.training import checkpoint, routing
from wgflow_rl.training.beside import Evaluator, evaluators
from wgflow_rl.training.finite import TrainingDiverged
from wgflow_rl.training.graphs import Captured
from wgflow_rl.training.interrupt import StopRequest
from wgflow_rl.training.rollout import EVAL_ENVS
from wgflow_rl.training.run import Run
from wgflow_rl.training.runlog import RunLog, check_folder
from wgflow_rl.training.seeds import asked, last_common_step
from wgflow_rl.training.settings import Settings, as_json
from wgflow_rl.training.stacked import Stacked
from wgflow_rl.training.trainer import Trainer
from wgflow_rl.training.updates import Update, counts_updates, together
from wgflow_rl.utils.cli import one_line_errors


def run(*runs: Settings, resume: bool = False, progress: bool = True) -> Path:
    """Train to the end of the schedule and return the run's folder; several runs, one a seed, step by step together.

    A run killed anywhere and resumed ends as one that was not. Ctrl-C writes a checkpoint first.
    """
    first = runs[0]
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    for settings in runs:
        check_folder(settings.folder, resume=resume)  # before data is generated
    hidden, device = first.agent.hidden, first.device
    route = routing.settle(first.route, hidden, device=device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(routing.applied(route, precision=first.precision, device=device))
        if first.precision == "mixed":
            routing.warn_if_slow(hidden, device=device)
        guard = stack.enter_context(Guard(first.env, timeout=first.env_timeout))
        collecting = (
            len(runs) * first.envs
        )  # those of evaluations serve every seed, one after the other
        evaluating = 0 if first.eval_processes else min(EVAL_ENVS, first.schedule.eval_episodes)
        make = partial(envs.make, first.env)
        playing = stack.enter_context(
            environments(make, collecting + evaluating, processes=first.env_processes)
        )
        beside: list[Evaluator | None] = [None] * len(runs)
        if first.eval_processes:
            settled = dataclasses.replace(first, route=route)
            beside = [*stack.enter_context(evaluators(settled, len(runs)))]
        trainers: list[Trainer] = []
        for number, settings in enumerate(
            dataclasses.replace(settings, route=route) for settings in runs
        ):
            own = playing[number * first.envs : (number + 1) * first.envs] + playing[collecting:]
            like = trainers[0] if trainers else None
            trainers.append(
                Trainer(settings, playing=own, guard=guard, progress=progress, like=like)
            )
        if resume:
            load(trainers)
        share_update(trainers)
        # A run that was killed before its first checkpoint resumes from its beginning: -1 drops every row.
        since = (trainers[0].step or -1) if resume else None
        logs = [
            stack.enter_context(
                RunLog(
                    t.settings.folder, resume_step=since, evaluate_again=t.evaluating is not None
                )
            )
            for t in trainers
        ]
        for (
            trainer
        ) in trainers:  # their rows are gone: alone, a seed would go on from one and leave a gap
            checkpoint.drop_after(trainer.settings.folder / "checkpoints", trainer.step)
        bar = stack.enter_context(
            tqdm(
                total=trainers[0].total,
                initial=trainers[0].step,
                disable=not progress,
                unit="step",
                mininterval=1,
            )
        )
        stop = stack.enter_context(StopRequest())
        for trainer, log in zip(trainers, logs, strict=True):
            log.config(as_json(trainer.settings))
        parts = zip(trainers, logs, beside, strict=True)
        train([Run(trainer, log, bar, evaluator) for trainer, log, evaluator in parts], stop)
    return first.folder


def load(trainers: Sequence[Trainer]) -> None:
    """Continue each run from its newest intact checkpoint, several from the newest that all of them have."""
    folders = [trainer.settings.folder / "checkpoints" for trainer in trainers]
    if len(folders) == 1:
        if checkpoint.steps(folders[0]):
            trainers[0].load(folders[0])
    elif step := last_common_step(folders):
        for trainer, folder in zip(trainers, folders, strict=True):
            trainer.load(folder, step=step)


def share_update(trainers: Sequence[Trainer]) -> None:
    """Have the trainers make one update for all, and a GPU make it as one graph where it can."""
    lead = trainers[0]
    update: Update = (
        lead.update if len(trainers) == 1 else Stacked([trainer.agent for trainer in trainers])
    )
    on_gpu = torch.device(lead.settings.device).type == "cuda"
    if on_gpu and lead.settings.graph and not counts_updates(lead.agent):
        update = Captured(update)
    for trainer in trainers:
        trainer.update = update


def train(runs: Sequence[Run], stop: StopRequest) -> None:
    """Every step that is left, with its rows and checkpoints.

    Raises: SystemExit(130) when asked to stop; TrainingDiverged, after the rows of every evaluation before it.
    """
    for run in runs:
        run.go_on()
    try:
        take_steps(runs, stop)
    except TrainingDiverged:
        for run in runs:
            run.wait()
        raise
    for run in runs:
        run.end()


def take_steps(runs: Sequence[Run], stop: StopRequest) -> None:
    """Steps, rows and checkpoints to the end of the schedule. Raises: as `train`."""
    lead, bar = runs[0].trainer, runs[0].bar
    while lead.step < lead.total:
        for run, metrics in zip(runs, advance(runs), strict=True):
            with run.batch_dumped():
                run.write(metrics)
        bar.update()
        # Read once: a signal may come between the next two lines.
        stopping = stop.asked and lead.step < lead.total
        if stopping or any(run.checkpoint_due for run in runs):
            for run in runs:
                with run.batch_dumped():
                    run.save()
        if stopping:
            folders = " ".join(str(run.trainer.settings.folder) for run in runs)
            bar.write(f"stopped after step {lead.step}; continue with --resume {folders}")
            raise SystemExit(130)


def advance(runs: Sequence[Run]) -> list[dict[str, torch.Tensor]]:
    """One step of every run, several with one update for all. Raises: TrainingDiverged, as `Trainer.advance`."""
    if len(runs) == 1:
        with runs[0].batch_dumped():
            return [runs[0].trainer.advance()]
    works = []
    for run in runs:
        with run.batch_dumped():
            works.append(run.trainer.draw())
    if None in works:  # online, before the first update: in all alike
        return [{} for _ in runs]
    lead, work = runs[0].trainer, together(works)
    outcome = lead.update(work.batch, work.noise, online=work.online)
    measured = []
    for s, run in enumerate(runs):
        with run.batch_dumped():
            measured.append(run.trainer.learned(outcome.row(s)))
    return measured


def main(args: list[str] | None = None) -> None:
    with one_line_errors():
        runs, resume = asked(sys.argv[1:] if args is None else args)
        run(*runs, resume=resume)


if __name__ == "__main__":
    main()
