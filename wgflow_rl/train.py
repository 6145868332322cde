"""Offline, then online training of one agent: `python -m wgflow_rl.train [--env ...]`, continued by `--resume DIR`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from wgflow_rl import checkpoint, data, envs, methods, ops
from wgflow_rl.cli import one_line_errors
from wgflow_rl.replay import Replay
from wgflow_rl.rollout import Collector, evaluate
from wgflow_rl.runlog import RunLog, check_folder
from wgflow_rl.settings import Settings, as_json, from_command_line
from wgflow_rl.snapshot import restore, snapshot

SETTLED = 500  # updates after which a narrow policy is no longer its initialisation
COLLAPSED = 0.2  # spread ratio under which a policy no longer covers its data (docs/theory.md)
EVAL_ENVS = 8  # environments an evaluation plays on; an arm takes 170 MB each
HELD_OUT = 256  # validation chunks the diagnostics are read on


class TrainingDiverged(RuntimeError):
    """A loss or a weight stopped being finite."""


class StopRequest:
    """Ctrl-C or SIGTERM asks; the loop answers after the step in progress, so that no half step is ever saved.

    A second Ctrl-C stops at once.
    """

    def __enter__(self) -> StopRequest:
        self.asked = False
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Trainer:
    """The whole state of a run. `advance` is a function of that state alone, so a resumed run repeats exactly."""

    def __init__(self, settings: Settings, *, progress: bool = True):
        self.settings = settings
        cfg, schedule = settings.agent, settings.schedule
        train, validation = data.load(
            settings.env,
            folder=settings.data,
            rows=schedule.data_rows,
            memory_gb=settings.memory_gb,
            progress=progress,
        )
        self.replay = Replay(
            train,
            capacity=train.resident + schedule.online_steps,
            device=settings.device,
            seed=settings.seed,
            swap_every=settings.swap_every,
        )
        self.data = validation.checksum(train.checksum())  # known again on resume
        self.held_out = Replay(validation, capacity=len(validation), device=settings.device)
        obs = torch.as_tensor(train.head().observations)
        self.agent = methods.build(
            cfg,
            obs_dim=train.widths[0],
            action_dim=train.widths[1],
            seed=settings.seed,
            obs_mean=obs.mean(0),
            obs_std=obs.std(0).clamp_min(1e-3),
            device=settings.device,
        )
        # On the CPU whatever the device: a run then draws the same numbers, and resumes, on any other.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.acting = torch.Generator().manual_seed(settings.seed)
        self.collector = Collector(envs.make(settings.env), seed=settings.seed)
        self.eval_envs = [envs.make(settings.env) for _ in range(min(EVAL_ENVS, schedule.eval_episodes))]
        self.step = 0

    @property
    def total(self) -> int:
        return self.settings.schedule.offline_steps + self.settings.schedule.online_steps

    @property
    def phase(self) -> str:
        return "online" if self.step > self.settings.schedule.offline_steps else "offline"

    def advance(self) -> dict[str, torch.Tensor]:
        """One step: offline an update; online an environment step, then an update. Returns scalars to log.

        Raises: TrainingDiverged naming what is not finite, and the step.
        """
        self.step += 1
        cfg, schedule = self.settings.agent, self.settings.schedule
        collected = self.step - schedule.offline_steps
        if collected == 1:
            self.agent.start_online()
        if collected >= 1:
            self.replay.add(**self.collector.step(self.agent.act, self.acting))
            if collected <= schedule.online_start:
                return {}
            ops.anneal_(self.agent.optimiser, cfg.lr, cfg.lr_end, collected / schedule.online_steps)
        batch = self.replay.sample(
            cfg.batch,
            chunk=cfg.chunk,
            gamma=cfg.gamma,
            generator=self.generator,
            online_share=schedule.online_share,
            step=min(self.step, schedule.offline_steps),
        )
        self._check_finite({f"batch.{name}": t for name, t in batch._asdict().items()})
        noise = self.agent.draw_noise(cfg.batch, self.generator)
        with self._refusals_are_divergence("update"):
            log = self.agent.update(batch, noise, online=collected >= 1)
        self._check_finite({name: value for name, value in log.items() if name.endswith("_loss")})
        return log

    @contextlib.contextmanager
    def _refusals_are_divergence(self, of: str) -> Iterator[None]:
        """A field refuses NaN: with a finite batch, it is the weights that have it."""
        try:
            yield
        except ValueError as error:
            self._check_finite(snapshot(self.agent.modules, self.agent.optimiser))
            if "NaN" not in str(error):
                raise
            # Finite weights, so large that what they make is not.
            raise TrainingDiverged(
                f"a field of the {of} is not finite at step {self.step} ({self.phase}). Checkpoints are from before "
                "it; what usually helps: a new run with a smaller --lr."
            ) from error

    def _check_finite(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                hint = (
                    "see where it comes from"
                    if name.startswith("batch.")
                    else "a new run with a smaller --lr"
                )
                raise TrainingDiverged(
                    f"{name} is not finite at step {self.step} ({self.phase}). Checkpoints are from before it; what "
                    f"usually helps: {hint}."
                )

    def evaluate(self) -> dict:
        """Success, return and length of `eval_episodes` episodes whose start states depend on (seed, step) alone."""
        result = evaluate(
            self.agent.act,
            self.eval_envs,
            episodes=self.settings.schedule.eval_episodes,
            seed=self.settings.seed,
            first_episode=self.step,
        )
        return {
            "successes": int(result.success.sum()),
            "episodes": len(result.success),
            "episode_return": float(result.returns.mean()),
            "length": float(result.lengths.mean()),
        }

    def diagnose(self) -> dict[str, torch.Tensor]:
        """The agent's held-out measures, on the same validation chunks and noise each time.

        Raises: TrainingDiverged where a field of them is not finite.
        """
        generator = torch.Generator().manual_seed(0)
        cfg = self.settings.agent
        batch = self.held_out.sample(HELD_OUT, chunk=cfg.chunk, gamma=cfg.gamma, generator=generator)
        with self._refusals_are_divergence("diagnostics"):
            return self.agent.diagnose(batch, generator)

    def save(self, folder: Path) -> None:
        """Write a checkpoint of everything that `load` needs to go on as if nothing had happened.

        Raises: TrainingDiverged, with nothing written, if a weight is not finite: gradients fail before the loss does.
        """
        taken, state = self.collector.state()
        groups = {
            "agent": snapshot(self.agent.modules, self.agent.optimiser),
            "replay": self.replay.state(),
            "collector": taken,
            "random": {"training": self.generator.get_state(), "acting": self.acting.get_state()},
        }
        tensors = {f"{group}.{name}": t for group, content in groups.items() for name, t in content.items()}
        self._check_finite(groups["agent"])
        state |= {"added": self.replay.added, "data": self.data}
        checkpoint.save(folder, step=self.step, tensors=tensors, state=state)

    def load(self, folder: Path) -> None:
        """Continue from the newest intact checkpoint. Raises: as `checkpoint.load`; ValueError if it does not fit."""
        self.step, tensors, state = checkpoint.load(folder)
        if state["data"] != self.data:
            raise ValueError(
                f"the data read now are not those the run in {folder.parent} began with, so it cannot be continued. "
                "Put the files back, or start a new run."
            )

        def group(name: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}

        restore(self.agent.modules, self.agent.optimiser, group("agent"))
        self.replay.load_state(group("replay"), state["added"])
        self.collector.load_state(group("collector"), state)
        self.generator.set_state(tensors["random.training"])
        self.acting.set_state(tensors["random.acting"])


def run(settings: Settings, *, resume: bool = False, progress: bool = True) -> Path:
    """Train to the end of the schedule and return the run's folder.

    Rows of a step are written before its checkpoint, so a run killed anywhere and resumed ends with the rows of one
    that was not. Ctrl-C writes a checkpoint first.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    schedule, folder = settings.schedule, settings.folder
    check_folder(folder, resume=resume)  # before data is generated
    trainer = Trainer(settings, progress=progress)
    if resume and any((folder / "checkpoints").glob("step-*")):
        trainer.load(folder / "checkpoints")
    # A run that was killed before its first checkpoint resumes from its beginning: -1 drops every row.
    resume_step = (trainer.step or -1) if resume else None
    with (
        RunLog(folder, resume_step=resume_step) as log,
        tqdm(
            total=trainer.total, initial=trainer.step, disable=not progress, unit="step", mininterval=1
        ) as bar,
        StopRequest() as stop,
    ):
        log.config(as_json(settings))
        warned = False
        while trainer.step < trainer.total:
            metrics = trainer.advance()
            step, last = trainer.step, trainer.step == trainer.total
            bar.update()
            if metrics and (step % schedule.log_every == 0 or last):
                metrics |= trainer.diagnose()
                log.train(step, trainer.phase, metrics)
                field = getattr(settings.agent, "field", None)  # only a drift collapses without being told to
                if field and step >= SETTLED and metrics["spread_ratio"] < COLLAPSED and not warned:
                    warned = True
                    bar.write(
                        f"step {step}: the policy has collapsed, spread / E|x-y| = {metrics['spread_ratio']:.2f} "
                        f"(about 1 when it covers its data). --field {field} cannot clone data with "
                        "one action per state here; the preset's is likelihood+energy."
                    )
            if step % schedule.eval_every == 0 or last:
                row = log.evaluation(step, trainer.phase, **trainer.evaluate())
                log.curve(settings.env)
                bar.set_postfix_str(
                    f"{trainer.phase}, success {row['success']:.2f}, length {row['length']:.0f}"
                )
            stopping = stop.asked and not last  # read once: a signal may come between the next two lines
            if step % schedule.checkpoint_every == 0 or last or stopping:
                trainer.save(folder / "checkpoints")
            if stopping:
                bar.write(f"stopped after step {step}; continue with --resume {folder}")
                raise SystemExit(130)
    return folder


def main(args: list[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    with one_line_errors():
        if any(arg.partition("=")[0] == "--resume" for arg in args):
            run(Settings.resumed(args), resume=True)
        else:
            run(from_command_line(args))


if __name__ == "__main__":
    main()
