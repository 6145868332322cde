"""Begin a run after the offline phase of another: `--offline-run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from wgflow_rl.training import checkpoint
from wgflow_rl.training.csv_table import read_numbers, score_of
from wgflow_rl.training.settings import ONLY_OF_SHARDS, Settings, flat, of_offline_phase
from wgflow_rl.training.state import Best, TrainingState


class OfflinePhase(NamedTuple):
    """What a run inherits besides weights: evaluations before the end of the phase, and seconds that it took."""

    evaluations: list[dict[str, Any]]
    seconds: float


def take_offline_phase(state: TrainingState, run: Path) -> OfflinePhase:
    """Let a run begin after the offline phase of another.

    What follows is what would have followed an offline phase of this run. The evaluation at the end of the phase
    is pending.

    Raises:
        FileNotFoundError: If there is no run, or no checkpoint at the end of its offline phase or of the best
            evaluation in it.
        ValueError: If data, settings or device of the phase differ.
    """
    folder, schedule = run / "checkpoints", state.settings.schedule
    end = schedule.offline_steps
    _refuse_other_phase(state.settings, run)
    saved = checkpoint.load(folder, step=end, rows=False)
    if saved.state["data"] != state.data_checksum:
        raise ValueError(f"--offline-run is {run}, which was trained on other data")
    state.restore_agent(saved.tensors, run)
    state.step = end
    state.evaluating = end
    evaluations, logged = (read_numbers(run / name) for name in ("eval.csv", "train.csv"))
    best = Best(*saved.state["best"])
    kept = checkpoint.steps(folder)
    if 0 < best.step < end and best.step not in kept:
        # Removed when a later evaluation was at least as good: that of the end, or one online.
        at_end = [row for row in evaluations if row["step"] == end]
        if not at_end or score_of(at_end[0]) < float(f"{best.score:.8g}"):
            raise FileNotFoundError(
                f"--offline-run is {run}, whose best offline checkpoint, of step {best.step}, was removed when it "
                "did better online. Train the phase alone, with --online-steps 0"
            )
    elif best.step in kept - {0, end}:
        state.best = best
        found = checkpoint.load(folder, step=best.step, rows=False)
        changed = found.state | {"settings": state.result_settings()}
        own = state.settings.folder / "checkpoints"
        checkpoint.save(own, step=best.step, tensors=found.tensors, state=changed)
    return OfflinePhase(
        [row for row in evaluations if row["step"] < end],
        max(row["wall_s"] for row in (*evaluations, *logged) if row["step"] <= end),
    )


def _refuse_other_phase(settings: Settings, run: Path) -> None:
    """Raises: FileNotFoundError or ValueError if a run has no offline phase, or one of other settings."""
    try:
        other = Settings.read(run)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--offline-run: {error}") from error
    end = settings.schedule.offline_steps
    if end not in checkpoint.steps(run / "checkpoints") and other.schedule.offline_steps == end:
        raise FileNotFoundError(
            f"--offline-run is {run}, which holds no checkpoint of step {end}, the end of its offline phase. A run "
            "with --online-steps 0 ends with it"
        )
    phases = [of_offline_phase(each) for each in (settings, other)]
    # The values of both, also of a setting that only one of the phases depends on.
    mine, its = (flat(s) | phase for s, phase in zip((settings, other), phases, strict=True))
    uncertain = {"data", *(() if mine["data"] and its["data"] else ONLY_OF_SHARDS)}
    names = sorted((phases[0] | phases[1]).keys() - uncertain - {"method"})
    for name in ("method", *names):
        if mine.get(name) != its.get(name):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"--offline-run is {run}, whose offline phase had {flag} {its.get(name)}; that of this run has "
                f"{mine.get(name)}. Give it equal settings, or leave --offline-run out"
            )
