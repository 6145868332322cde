"""One run's whole state and what a step does to it: data, agent, environments, random numbers; saved and restored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import NamedTuple

import gymnasium
import torch
from safetensors.torch import save as to_bytes

from wgflow_rl import data
from wgflow_rl.agents import methods
from wgflow_rl.data.batch import Batch
from wgflow_rl.data.replay import Replay
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training import checkpoint
from wgflow_rl.training.finite import Watch, are_finite, check_finite, refusals_are_divergence
from wgflow_rl.training.rollout import Collector, Evaluation, evaluate
from wgflow_rl.training.settings import Settings, as_json, of_results
from wgflow_rl.training.snapshot import restore, snapshot, under
from wgflow_rl.training.updates import Outcome, Plain, Update, Work
from wgflow_rl.utils.files import write_whole

READ_EVERY = 100  # notes of what was finite, two a step: a GPU is waited for when they are read
HELD_OUT = 256  # validation chunks the diagnostics are read on


class Best(NamedTuple):
    """The evaluation of most success, the later of equal ones; its checkpoint is kept."""

    step: int
    success: float


def check_sizes(widths: tuple[int, int], env: gymnasium.Env, name: str) -> None:
    """Raises: ValueError if the data's observations and actions are not of the environment's sizes."""
    spaces = {"observations": env.observation_space, "actions": env.action_space}
    for (what, space), width in zip(spaces.items(), widths, strict=True):
        if space.shape != (width,):
            raise ValueError(
                f"{what} of the data have {width} entries, those of {name} have shape {space.shape}; these are data of "
                "another environment. Give --data the right folder."
            )


class Trainer:
    """The whole state of a run. `advance` is a function of that state alone, so a resumed run repeats exactly.

    Args:
        playing: the environments: `settings.envs` that collect, then those of evaluations.
        guard: names what goes wrong inside one of them.
        like: of another seed, whose data are read already.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        playing: Sequence[gymnasium.Env],
        guard: Guard,
        progress: bool = True,
        like: Trainer | None = None,
    ):
        self.settings, self.guard = settings, guard
        cfg, schedule = settings.agent, settings.schedule
        self.source = train, validation = (like and like.source) or data.load(
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
            lanes=settings.envs,
        )
        if like is None:
            self.data = validation.checksum(train.checksum())  # known again on resume
            self.held_out = Replay(validation, capacity=len(validation), device=settings.device)
        else:
            self.data, self.held_out = like.data, like.held_out
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
        self.update: Update = Plain(self.agent)
        self.watch = Watch(1 if torch.device(settings.device).type == "cpu" else READ_EVERY)
        # On the CPU unless asked: a run then draws the same numbers, and resumes, on any device.
        where = settings.device if settings.noise_on == "device" else "cpu"
        self.generator = torch.Generator(where).manual_seed(settings.seed)
        self.acting = torch.Generator().manual_seed(settings.seed)
        check_sizes(train.widths, playing[0], settings.env)
        self.collector = Collector(playing[: settings.envs], seed=settings.seed, guard=guard)
        self.eval_envs = playing[settings.envs :]
        self.step = 0
        self.best = Best(step=0, success=-1.0)
        self.evaluating: int | None = (
            None  # the step whose evaluation has been begun and not taken in
        )
        self.parts: tuple[checkpoint.Part, ...] = ()  # of the online rows, as written so far
        self.written = 0  # online rows in them
        self.batch: Batch | None = None  # the last one drawn

    @property
    def _what(self) -> dict[str, object]:
        """The settings that results depend on, flat, as JSON gives them back; the data have a fingerprint."""
        told = json.loads(json.dumps(of_results(as_json(self.settings))))
        agent, schedule = told.pop("agent"), told.pop("schedule")
        return {k: v for k, v in (told | agent | schedule).items() if k != "data"}

    @property
    def total(self) -> int:
        return self.settings.schedule.offline_steps + self.settings.schedule.online_steps

    @property
    def phase(self) -> str:
        return self.phase_of(self.step)

    def phase_of(self, step: int) -> str:
        return "online" if step > self.settings.schedule.offline_steps else "offline"

    @property
    def _now(self) -> str:
        return f"step {self.step} ({self.phase})"

    def _weights(self) -> dict[str, torch.Tensor]:
        return snapshot(self.agent)

    def advance(self) -> dict[str, torch.Tensor]:
        """One step: offline an update; online an environment step, then an update. Returns scalars to log.

        Raises: TrainingDiverged naming what is not finite, and the step.
        """
        work = self.draw()
        if work is None:
            return {}
        with refusals_are_divergence("update", self._weights, at=self._now):
            outcome = self.update(work.batch, work.noise, online=work.online)
        return self.learned(outcome)

    def draw(self) -> Work | None:
        """Begin a step: collect online, then draw what its update takes; None before the first online update.

        Raises: TrainingDiverged if the batch is not finite.
        """
        self.step += 1
        cfg, schedule = self.settings.agent, self.settings.schedule
        collected = self.step - schedule.offline_steps
        if collected == 1:
            self.agent.start_online()
        if collected >= 1:
            self.watch.read()  # no environment is given the actions of a policy that is not finite
            self.replay.add(**self.collector.step(self.agent.act, self.acting))
            if collected <= schedule.online_start:
                return None
            self.agent.anneal(collected / schedule.online_steps)
        batch = self.replay.sample(
            cfg.batch,
            chunk=cfg.chunk,
            gamma=cfg.gamma,
            generator=self.generator,
            online_share=schedule.online_share,
            step=min(self.step, schedule.offline_steps),
        )
        self.batch = batch
        self.watch.note(self._now, [f"batch.{name}" for name in batch._fields], are_finite(batch))
        return Work(batch, self.agent.draw_noise(cfg.batch, self.generator), online=collected >= 1)

    def learned(self, outcome: Outcome) -> dict[str, torch.Tensor]:
        """End a step: what to log of it. Raises: TrainingDiverged naming a loss or gradient that is not finite."""
        self.watch.note(self._now, outcome.names, outcome.finite)
        return outcome.log

    def evaluate(self) -> Evaluation:
        """`eval_episodes` episodes whose start states, and the policy's noise, depend on (seed, step) alone."""
        self.watch.read()
        return evaluate(
            self.agent.act,
            self.eval_envs,
            episodes=self.settings.schedule.eval_episodes,
            seed=self.settings.seed,
            first_episode=self.step,
            guard=self.guard,
        )

    def take_in(self, result: Evaluation, *, step: int) -> dict:
        """Remember the evaluation of a step if it is the best one; what to write down of it."""
        success = float(result.success.mean())
        if success >= self.best.success:
            self.best = Best(step, success)
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
        self.watch.read()
        generator = torch.Generator().manual_seed(0)
        cfg = self.settings.agent
        batch = self.held_out.sample(
            HELD_OUT, chunk=cfg.chunk, gamma=cfg.gamma, generator=generator
        )
        with refusals_are_divergence("diagnostics", self._weights, at=self._now):
            return self.agent.diagnose(batch, generator)

    def save(self, folder: Path, *, evaluates: bool = False) -> None:
        """Write a checkpoint of everything that `load` needs to go on as if nothing had happened.

        Args:
            evaluates: an evaluation of this step follows, and has to be made again by who resumes from here.
        Raises: TrainingDiverged, with nothing written, if a weight is not finite: gradients fail before the loss does.
        """
        self.watch.read()
        taken, state = self.collector.state()
        groups = {
            "agent": self._weights(),
            "collector": taken,
            "random": {"training": self.generator.get_state(), "acting": self.acting.get_state()},
        }
        tensors = {
            f"{group}.{name}": t for group, content in groups.items() for name, t in content.items()
        }
        check_finite(groups["agent"], at=self._now)
        if self.replay.added > self.written:
            part = checkpoint.save_rows(
                folder,
                first=self.written,
                last=self.replay.added,
                tensors=self.replay.online_rows(self.written),
            )
            self.parts, self.written = (*self.parts, part), self.replay.added
        state |= {
            "added": self.replay.added,
            "data": self.data,
            "best": self.best,
            "settings": self._what,
        }
        state |= {"evaluating": self.step if evaluates else None}
        checkpoint.save(
            folder,
            step=self.step,
            tensors=tensors,
            state=state,
            parts=self.parts,
            best=self.best.step,
        )

    def load(self, folder: Path, *, step: int | None = None) -> None:
        """Continue from the newest intact checkpoint, or from that of `step`.

        Raises: as `checkpoint.load`; ValueError if it does not fit.
        """
        saved = checkpoint.load(folder, step=step)
        tensors, state = saved.tensors, saved.state
        if state["data"] != self.data:
            raise ValueError(
                f"the data read now are not those the run in {folder.parent} began with, so it cannot be continued. "
                "Put the files back, or start a new run."
            )

        # A setting that the version it began with did not have was at the default, which does as before.
        defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
        began = defaults | state.get("settings", {})
        for name, value in self._what.items():
            if began.get(name, value) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the run in {folder.parent} began with {began[name]!r}, so it cannot be "
                    "continued. Undo the change in its config.json."
                )

        restore(self.agent, under(tensors, "agent"))
        held = under(tensors, "replay")  # format 1 wrote every row with the rest
        for rows in (held,) if held else saved.rows:
            self.replay.load_online(rows, self.replay.added)
        self.collector.load_state(under(tensors, "collector"), state)
        if tensors["random.training"].shape != self.generator.get_state().shape:
            raise ValueError(
                f"the run in {folder.parent} drew its noise on a device of another kind than {self.settings.device} "
                "(--noise-on device), so its numbers cannot be drawn here; resume it with the --device it began with"
            )
        self.generator.set_state(tensors["random.training"])
        self.acting.set_state(tensors["random.acting"])
        self.step, self.best = saved.step, Best(*state.get("best", self.best))
        self.evaluating = state.get("evaluating")
        self.parts, self.written = saved.parts, self.replay.added if saved.parts else 0

    def dump(self, folder: Path) -> Path:
        """Write the last batch drawn, whole, beside what was learned from it. Raises: OSError when the disk is full."""
        assert self.batch is not None
        path = folder / f"batch-of-step-{self.step:012d}.safetensors"
        write_whole(
            path, to_bytes({k: t.cpu().contiguous() for k, t in self.batch._asdict().items()})
        )
        return path
