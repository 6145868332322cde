"""Offline, then online training of one agent: `python -m wgflow_rl.train [--env ...]`, continued by `--resume DIR`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from wgflow_rl import checkpoint, envs, networks, routing
from wgflow_rl.cli import one_line_errors
from wgflow_rl.finite import TrainingDiverged
from wgflow_rl.graphs import Captured
from wgflow_rl.guard import Guard
from wgflow_rl.interrupt import StopRequest
from wgflow_rl.runlog import RunLog, check_folder
from wgflow_rl.seeds import asked, last_common_step
from wgflow_rl.settings import Settings, as_json
from wgflow_rl.stacked import Stacked
from wgflow_rl.trainer import Trainer
from wgflow_rl.updates import Update, counts_updates, together
from wgflow_rl.workers import environments

SETTLED = 500  # updates after which a narrow policy is no longer its initialisation
COLLAPSED = 0.2  # spread ratio under which a policy no longer covers its data (docs/theory.md)
EVAL_ENVS = 8  # environments an evaluation plays on; an arm takes 170 MB each


def run(*runs: Settings, resume: bool = False, progress: bool = True) -> Path:
    """Train to the end of the schedule and return the run's folder; several runs, one a seed, step by step together.

    Rows of a step are written before its checkpoint, so a run killed anywhere and resumed ends with the rows of one
    that was not. Ctrl-C writes a checkpoint first.
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
        collecting = len(runs) * first.envs  # those of evaluations serve every seed, one after the other
        playing = stack.enter_context(
            environments(
                partial(envs.make, first.env),
                collecting + min(EVAL_ENVS, first.schedule.eval_episodes),
                processes=first.env_processes,
            )
        )
        trainers: list[Trainer] = []
        for number, settings in enumerate(dataclasses.replace(settings, route=route) for settings in runs):
            own = playing[number * first.envs : (number + 1) * first.envs] + playing[collecting:]
            like = trainers[0] if trainers else None
            trainers.append(Trainer(settings, playing=own, guard=guard, progress=progress, like=like))
        if resume:
            load(trainers)
        share_update(trainers)
        # A run that was killed before its first checkpoint resumes from its beginning: -1 drops every row.
        since = (trainers[0].step or -1) if resume else None
        logs = [stack.enter_context(RunLog(t.settings.folder, resume_step=since)) for t in trainers]
        for trainer in trainers:  # their rows are gone: alone, a seed would go on from one and leave a gap
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
        train(trainers, logs, bar, stop)
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
    update: Update = lead.update if len(trainers) == 1 else Stacked([trainer.agent for trainer in trainers])
    on_gpu = torch.device(lead.settings.device).type == "cuda"
    if on_gpu and lead.settings.graph and not counts_updates(lead.agent):
        update = Captured(update)
    for trainer in trainers:
        trainer.update = update


def train(trainers: Sequence[Trainer], logs: Sequence[RunLog], bar: tqdm, stop: StopRequest) -> None:
    """Every step that is left, with its rows and checkpoints. Raises: SystemExit(130) when asked to stop."""
    lead, warned = trainers[0], set()
    while lead.step < lead.total:
        measured = advance(trainers)
        step, last = lead.step, lead.step == lead.total
        bar.update()
        for trainer, log, metrics in zip(trainers, logs, measured, strict=True):
            with batch_dumped(trainer):
                collapsed = write_rows(trainer, log, metrics, bar)
            if collapsed and trainer not in warned:
                warned.add(trainer)
                bar.write(collapsed)
        stopping = stop.asked and not last  # read once: a signal may come between the next two lines
        best = any(step == trainer.best.step for trainer in trainers)
        if step % lead.settings.schedule.checkpoint_every == 0 or best or last or stopping:
            for log in logs:
                log.sync()  # a checkpoint without its rows would leave a gap in them
            for trainer in trainers:
                with batch_dumped(trainer):
                    trainer.save(trainer.settings.folder / "checkpoints")
        if stopping:
            folders = " ".join(str(trainer.settings.folder) for trainer in trainers)
            bar.write(f"stopped after step {step}; continue with --resume {folders}")
            raise SystemExit(130)


def advance(trainers: Sequence[Trainer]) -> list[dict[str, torch.Tensor]]:
    """One step of every run, several with one update for all. Raises: TrainingDiverged, as `Trainer.advance`."""
    if len(trainers) == 1:
        with batch_dumped(trainers[0]):
            return [trainers[0].advance()]
    works = []
    for trainer in trainers:
        with batch_dumped(trainer):
            works.append(trainer.draw())
    if None in works:  # online, before the first update: in all alike
        return [{} for _ in trainers]
    lead, work = trainers[0], together(works)
    with networks.reduced(lead.settings.precision == "mixed"):
        outcome = lead.update(work.batch, work.noise, online=work.online)
    measured = []
    for s, trainer in enumerate(trainers):
        with batch_dumped(trainer):
            measured.append(trainer.learned(outcome.row(s)))
    return measured


def write_rows(trainer: Trainer, log: RunLog, metrics: dict[str, torch.Tensor], bar: tqdm) -> str | None:
    """The rows that are due after a step; what to say of a policy that has collapsed."""
    settings, schedule, step = trainer.settings, trainer.settings.schedule, trainer.step
    said, last = None, step == trainer.total
    if metrics and (step % schedule.log_every == 0 or last):
        metrics |= trainer.diagnose()
        log.train(step, trainer.phase, metrics)
        field = getattr(settings.agent, "field", None)  # only a drift collapses without being told to
        if field and step >= SETTLED and metrics["spread_ratio"] < COLLAPSED:
            said = (
                f"step {step}: the policy has collapsed, spread / E|x-y| = {metrics['spread_ratio']:.2f} "
                f"(about 1 when it covers its data). --field {field} cannot clone data with "
                "one action per state here; the preset's is likelihood+energy."
            )
    if step % schedule.eval_every == 0 or last:
        row = log.evaluation(step, trainer.phase, **trainer.evaluate())
        log.curve(settings.env)
        bar.set_postfix_str(f"{trainer.phase}, success {row['success']:.2f}, length {row['length']:.0f}")
    return said


@contextlib.contextmanager
def batch_dumped(trainer: Trainer) -> Iterator[None]:
    """Leave the last batch drawn in the run's folder, and say so in the error; on a CPU it is the step's."""
    try:
        yield
    except TrainingDiverged as error:
        try:
            where = f"The last batch drawn is in {trainer.dump(trainer.settings.folder)}."
        except OSError as full:
            where = f"The batch could not be written ({full})."
        raise TrainingDiverged(f"{error} {where}") from error


def main(args: list[str] | None = None) -> None:
    with one_line_errors():
        runs, resume = asked(sys.argv[1:] if args is None else args)
        run(*runs, resume=resume)


if __name__ == "__main__":
    main()
