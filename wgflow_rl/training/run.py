"""One run of a training: a trainer, and the folder in which its rows and checkpoints are written down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor
from tqdm import tqdm

from wgflow_rl.training.beside import Evaluator
from wgflow_rl.training.finite import TrainingDiverged
from wgflow_rl.training.rollout import Evaluation
from wgflow_rl.training.runlog import RunLog
from wgflow_rl.training.trainer import Trainer

SETTLED = 500  # updates after which a narrow policy is no longer its initialisation
COLLAPSED = 0.2  # spread ratio under which a policy no longer covers its data (docs/theory.md)


class Run:
    """What is written of a trainer, step by step.

    Rows of a step are written before its checkpoint, so that a run killed anywhere and resumed ends with the rows of
    one that was not. With an evaluator one row is late: the evaluation of a step begins after its checkpoint, which
    says so, and its row is written before the next. A run resumed from that checkpoint makes the evaluation again.

    Args:
        evaluator: evaluates checkpoints while training goes on; None: training waits for its evaluations.
    """

    def __init__(
        self, trainer: Trainer, log: RunLog, bar: tqdm, evaluator: Evaluator | None = None
    ):
        self.trainer, self.log, self.bar, self.evaluator = trainer, log, bar, evaluator
        self.folder = trainer.settings.folder / "checkpoints"
        self._begins = False  # an evaluation, with the next checkpoint
        self._unsaved = False  # a row later than the last checkpoint
        self._warned = False

    def go_on(self) -> None:
        """Make the evaluation again that was going on when the checkpoint was written which this run resumes from."""
        if self.trainer.evaluating is not None:
            self._evaluate()

    def write(self, metrics: Mapping[str, Tensor]) -> None:
        """The rows that are due after a step, all but a late one. Raises: TrainingDiverged, EnvironmentFailed."""
        trainer, schedule = self.trainer, self.trainer.settings.schedule
        if metrics and self._due(schedule.log_every):
            metrics = {**metrics, **trainer.diagnose()}
            self.log.train(trainer.step, trainer.phase, metrics)
            self._warn_if_collapsed(metrics)
        if self.evaluator is None and self._due(schedule.eval_every):
            self._evaluate()
        elif self.evaluator is not None:
            self._begins = self._due(schedule.eval_every)
            if trainer.evaluating is not None and self.evaluator.ended():
                self.wait()

    @property
    def checkpoint_due(self) -> bool:
        trainer = self.trainer
        best = trainer.step == trainer.best.step
        return self._begins or best or self._due(trainer.settings.schedule.checkpoint_every)

    def save(self) -> None:
        """Write a checkpoint after all rows before it, and begin the evaluation that is due beside training.

        Raises: TrainingDiverged, with nothing written, if a weight is not finite; EvaluationFailed.
        """
        self.wait()
        begins = self._begins
        self.log.sync()  # a checkpoint without its rows would leave a gap in them
        self.trainer.save(self.folder, evaluates=begins)
        self._begins = self._unsaved = False
        if begins:
            self._evaluate()

    def wait(self) -> None:
        """Wait for the evaluation beside training, if there is one, and write its row. Raises: EvaluationFailed."""
        step = self.trainer.evaluating
        if self.evaluator is not None and step is not None:
            self._take_in(self.evaluator.result(), step)

    def end(self) -> None:
        """Leave no row behind, nor a checkpoint without it."""
        self.wait()
        if self._unsaved:
            self.save()

    def _due(self, every: int) -> bool:
        return self.trainer.step % every == 0 or self.trainer.step == self.trainer.total

    def _evaluate(self) -> None:
        trainer = self.trainer
        if self.evaluator is None:
            self._take_in(trainer.evaluate(), trainer.step)
        else:
            trainer.evaluating = trainer.step
            self.evaluator.begin(self.folder, trainer.step, trainer.settings.seed)

    def _take_in(self, result: Evaluation, step: int) -> None:
        trainer = self.trainer
        phase = trainer.phase_of(step)
        row = self.log.evaluation(step, phase, **trainer.take_in(result, step=step))
        trainer.evaluating, self._unsaved = None, True
        self.log.curve(trainer.settings.env)
        self.bar.set_postfix_str(
            f"{phase}, success {row['success']:.2f}, length {row['length']:.0f}"
        )

    def _warn_if_collapsed(self, metrics: Mapping[str, Tensor]) -> None:
        step, field = self.trainer.step, getattr(self.trainer.settings.agent, "field", None)
        # Only a drift collapses without being told to.
        if field and step >= SETTLED and metrics["spread_ratio"] < COLLAPSED and not self._warned:
            self._warned = True
            self.bar.write(
                f"step {step}: the policy has collapsed, spread / E|x-y| = {metrics['spread_ratio']:.2f} "
                f"(about 1 when it covers its data). --field {field} cannot clone data with "
                "one action per state here; --method dfp-ml-energy can (field likelihood+energy)."
            )

    @contextlib.contextmanager
    def batch_dumped(self) -> Iterator[None]:
        """Leave the last batch drawn in the run's folder, and say so in the error; on a CPU it is the step's."""
        try:
            yield
        except TrainingDiverged as error:
            try:
                where = (
                    f"The last batch drawn is in {self.trainer.dump(self.trainer.settings.folder)}."
                )
            except OSError as full:
                where = f"The batch could not be written ({full})."
            raise TrainingDiverged(f"{error} {where}") from error
