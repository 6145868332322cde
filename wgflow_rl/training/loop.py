"""The training loop: offline updates, then environment steps with one update each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from wgflow_rl.agents import presets
from wgflow_rl.training import checkpoint, matmul
from wgflow_rl.training.evaluators import AsyncEvaluator, InlineEvaluator, pool_size
from wgflow_rl.training.offline_phase import take_offline_phase
from wgflow_rl.training.rollout import Evaluation
from wgflow_rl.training.runlog import RunLog, check_folder
from wgflow_rl.training.settings import Settings, as_json
from wgflow_rl.training.state import Best, TrainingState
from wgflow_rl.training.updates import TrainingDiverged, checked_update, raise_as_divergence
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.signals import StopRequest

WARM_UP = 500  # updates after which a narrow policy is no longer explained by its initialisation
COLLAPSED = 0.2  # spread ratio below which a policy does not cover its data (docs/theory.md)


class EvaluationFailed(UserError):
    """An evaluation raised, or its process died."""


def run(settings: Settings, *, resume: bool = False, progress: bool = True) -> Path:
    """Train to the end of the schedule and return the run's folder.

    A run that is killed at any moment and resumed ends with the rows and weights of one that was not.

    Raises:
        SystemExit: With status 130 after Ctrl-C or SIGTERM, with a checkpoint written.
        TrainingDiverged: If a loss or a gradient is not finite.
        EnvironmentFailed: If an environment raises or its process ends.
        EvaluationFailed: If an evaluation in another process fails.
    """
    check_folder(settings.folder, resume=resume)  # before data are generated
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        machine = settings.machine.resolved()
        settings = replace(settings, machine=machine)
        enter(matmul.using(machine.route))
        guard = enter(settings.make_guard())
        # Before the folder exists: if one cannot be made, the others are closed and nothing is left behind.
        envs = [enter(contextlib.closing(settings.make_env())) for _ in range(settings.envs)]
        inline = 0 if machine.async_eval else pool_size(settings)
        pool = [enter(contextlib.closing(settings.make_env())) for _ in range(inline)]

        state = TrainingState(settings, envs=envs, guard=guard, progress=progress)
        checkpoints = settings.folder / "checkpoints"
        # A run that takes over an offline phase begins with the checkpoint of its end.
        first = settings.schedule.offline_steps if settings.offline_run else 0
        if resume and any(step >= first for step in checkpoint.steps(checkpoints)):
            state.load(checkpoints)
        # A run killed before its first checkpoint starts again: -1 drops every row.
        resume_step = (state.step or -1) if resume else None
        repeats = state.evaluating is not None
        log = enter(RunLog(settings.folder, resume_step=resume_step, evaluate_again=repeats))
        inherited = None
        if settings.offline_run and not state.step:
            inherited = take_offline_phase(state, Path(settings.offline_run))
        log.config(as_json(settings))
        if inherited is not None:
            log.begin_with(inherited.evaluations, seconds=inherited.seconds)
        evaluator = (
            enter(AsyncEvaluator(settings))
            if machine.async_eval
            else InlineEvaluator(state, pool, guard)
        )
        bar = enter(
            tqdm(
                total=state.total,
                initial=state.step,
                disable=not progress,
                unit="step",
                mininterval=1,
            )
        )
        if not resume and not state.data_are_solved and hasattr(state.agent, "critic"):
            bar.write(
                f"warning: no transition of the data ends the task of {settings.env}, so training sees no success "
                "before the online phase. Check --env and --data, or go on if this is intended.",
                file=sys.stderr,
            )
        stop = enter(StopRequest())
        trainer = Trainer(state, log, evaluator, bar, stop)
        trainer.unsaved = inherited is not None
        trainer.train()
    return settings.folder


class Trainer:
    """Trains to the end of the schedule, writing rows and checkpoints.

    The row of a step is written before its checkpoint, so that no kill leaves a gap in the rows. An evaluation begins
    after the checkpoint of its step, and its row is written before the next one. Until then the checkpoint says that
    the evaluation is pending, and a resumed run repeats it.
    """

    def __init__(
        self,
        state: TrainingState,
        log: RunLog,
        evaluator: InlineEvaluator | AsyncEvaluator,
        bar: tqdm,
        stop: StopRequest,
    ):
        self.state, self.log, self.evaluator, self.bar, self.stop = state, log, evaluator, bar, stop
        self.settings, self.schedule = state.settings, state.settings.schedule
        self.pending: Future[Evaluation] | None = None
        self.unsaved = False  # something happened since the last checkpoint
        self.warned = False

    def train(self) -> None:
        """Take the steps that are left. Raises: as `run`."""
        try:
            self._train()
        except TrainingDiverged as error:
            with contextlib.suppress(EvaluationFailed):
                self.record_evaluation()
            raise TrainingDiverged(f"{error} {self.state.dump_batch()}") from error

    def _train(self) -> None:
        state, schedule = self.state, self.schedule
        if self.unsaved:  # the offline phase of another run
            self.save(evaluating=state.evaluating is not None)
        if state.evaluating is not None:  # pending when the checkpoint was written
            self.pending = self.evaluator.submit(state.evaluating)
        while state.step < state.total:
            metrics = self.advance()
            self.bar.update()
            if metrics and self.due(schedule.log_every):
                self.log_metrics(metrics)
            if self.due(schedule.eval_every):
                self.save(evaluating=True)
                self.pending = self.evaluator.submit(state.step)
            elif self.due(schedule.checkpoint_every):
                self.save()
            if self.pending is not None and self.pending.done():
                self.record_evaluation()
            if self.stop.requested and state.step < state.total:
                self.save()
                self.bar.write(
                    f"stopped after step {state.step}; continue with --resume {self.settings.folder}"
                )
                raise SystemExit(130)
        self.save()

    def advance(self) -> dict[str, Tensor]:
        """One step: offline an update; online an environment step, then an update. Returns scalars to log."""
        state, schedule = self.state, self.schedule
        agent, cfg = state.agent, self.settings.agent
        state.step += 1
        self.unsaved = True
        collected = state.step - schedule.offline_steps
        if collected == 1:
            agent.start_online()
        if collected >= 1:
            state.replay.add(**state.collector.step(agent.act, state.acting))
            if collected <= schedule.online_start:
                return {}
            agent.anneal(collected / schedule.online_steps)
        elif cfg.lr_end_offline != 1:
            agent.anneal(state.step / schedule.offline_steps, online=False)
        batch = state.sample()
        noise = agent.draw_noise(cfg.batch, state.generator)
        return checked_update(agent, batch, noise, online=collected >= 1, at=str(state))

    def due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.state.total

    def log_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        """Write a row of train.csv: the update's scalars, and diagnostics on held-out data."""
        state = self.state
        try:
            metrics = {**metrics, **state.diagnose()}
        except ValueError as error:
            raise_as_divergence(error, state.agent, of="diagnostics", at=str(state))
            raise
        self.log.train(state.step, state.phase(), metrics)
        self.warn_if_collapsed(metrics)

    def record_evaluation(self) -> None:
        """Wait for the pending evaluation, if there is one, and write its row. Raises: EvaluationFailed."""
        if self.pending is None:
            return
        state, step = self.state, self.state.evaluating
        assert step is not None
        try:
            result = self.pending.result()
        except Exception as error:
            raise EvaluationFailed(
                f"the evaluation of step {step} failed: {type(error).__name__}: {error} (--resume repeats it)"
            ) from error
        if result.score >= state.best.score:
            state.best = Best(step, result.score)
        row = self.log.evaluation(
            step,
            state.phase(step),
            successes=int(result.success.sum()),
            episodes=len(result.success),
            episode_return=float(result.returns.mean()),
            length=float(result.lengths.mean()),
            scores=result.scores,
        )
        self.log.curve(self.settings.env)
        name = "success" if result.scores is None else "score"
        self.bar.set_postfix_str(
            f"{state.phase(step)}, {name} {row[name]:.2f}, length {row['length']:.0f}"
        )
        self.pending, state.evaluating, self.unsaved = None, None, True

    def save(self, *, evaluating: bool = False) -> None:
        """Write a checkpoint if there is anything new, after all rows before it.

        Args:
            evaluating: an evaluation of this step follows.
        """
        self.record_evaluation()
        if self.unsaved:
            self.log.sync()
            self.state.evaluating = self.state.step if evaluating else None
            self.state.save(self.settings.folder / "checkpoints")
            self.unsaved = False

    def warn_if_collapsed(self, metrics: Mapping[str, Tensor]) -> None:
        # Only in drifting policies do the losses not show a collapse.
        field = getattr(self.settings.agent, "field", None)
        ratio = metrics["spread_ratio"]
        if field and self.state.step >= WARM_UP and ratio < COLLAPSED and not self.warned:
            self.warned = True
            self.bar.write(
                f"step {self.state.step}: the policy has collapsed, spread / E|x-y| = {ratio:.2f} (about 1 when it "
                f"covers its data). --field {field} cannot clone data with one action per state here; --field "
                f"{presets.OURS}, of --method {presets.DEFAULT}, can."
            )
