"""State of a run: data, agent, environments and random generators, with checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from wgflow_rl import data
from wgflow_rl.agents import presets
from wgflow_rl.data.batch import Batch
from wgflow_rl.data.replay import Replay
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training import checkpoint
from wgflow_rl.training.rollout import Collector
from wgflow_rl.training.settings import Settings, flat
from wgflow_rl.training.snapshot import restore, snapshot, under
from wgflow_rl.training.updates import check_finite
from wgflow_rl.utils.files import write_whole

HELD_OUT = 256  # validation chunks for diagnostics


class Best(NamedTuple):
    """Evaluation with the highest score (the success rate where the environment has no score), the latest of equals."""

    step: int
    score: float


class TrainingState:
    """Complete state of a run.

    A training step is a function of it alone, so resumed runs repeat exactly.

    Args:
        settings: settings of the run, with the machine's resolved.
        envs: `settings.envs` environments for online collection.
        guard: reports failures of the environments.
        progress: show a progress bar while data are generated.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        envs: Sequence[gymnasium.Env],
        guard: Guard,
        progress: bool = True,
    ):
        self.settings = settings
        cfg, schedule, device = settings.agent, settings.schedule, settings.machine.device
        train, validation = data.load(
            settings.env,
            folder=settings.data,
            rows=schedule.data_rows,
            memory_gb=settings.memory_gb,
            history=cfg.history,
            episodes=schedule.data_episodes,
            mirror=schedule.mirror,
            progress=progress,
        )
        check_sizes(train.widths, envs[0], settings.env)
        if (longest := int(validation.lengths.max())) < cfg.predicted:
            raise ValueError(
                f"--chunk or --horizon asks for {cfg.predicted} actions, but the held-out trajectories of "
                f"{settings.env} have at most {longest}; wanted at most that many"
            )
        self.data_checksum = validation.checksum(train.checksum())
        self.replay = Replay(
            train,
            capacity=train.resident + schedule.online_steps,
            device=device,
            seed=settings.seed,
            swap_every=settings.swap_every,
            lanes=settings.envs,
        )
        self.held_out = Replay(validation, capacity=len(validation), device=device)
        head = train.head()
        self.data_are_solved = head.successes > 0  # of shards, the first one
        obs = torch.as_tensor(head.observations)
        self.agent = presets.build(
            cfg,
            obs_dim=train.widths[0],
            action_dim=train.widths[1],
            seed=settings.seed,
            obs_mean=obs.mean(0),
            obs_std=obs.std(0).clamp_min(1e-3),
            device=device,
        )
        self.collector = Collector(envs, seed=settings.seed, guard=guard)
        # On the CPU by default: the draws, and resuming, are then independent of the device.
        where = device if settings.noise_on == "device" else "cpu"
        self.generator = torch.Generator(where).manual_seed(settings.seed)  # batches and noise
        self.acting = torch.Generator().manual_seed(settings.seed)
        self.step = 0
        self.best = Best(step=0, score=-1.0)
        # the step whose evaluation has begun and is not recorded
        self.evaluating: int | None = None
        self.batch: Batch | None = None  # the last one sampled
        self._parts: tuple[checkpoint.Part, ...] = ()  # files of online rows written so far
        self._rows_written = 0

    @property
    def total(self) -> int:
        return self.settings.schedule.offline_steps + self.settings.schedule.online_steps

    def phase(self, step: int | None = None) -> str:
        step = self.step if step is None else step
        return "online" if step > self.settings.schedule.offline_steps else "offline"

    def __str__(self) -> str:
        return f"step {self.step} ({self.phase()})"

    def sample(self) -> Batch:
        """Sample the batch of the next update."""
        cfg, schedule = self.settings.agent, self.settings.schedule
        self.batch = self.replay.sample(
            cfg.batch,
            **cfg.chunks,
            generator=self.generator,
            online_share=schedule.online_share,
            step=min(self.step - 1, schedule.offline_steps),
        )
        return self.batch

    def diagnose(self) -> dict[str, Tensor]:
        """Compute the agent's diagnostics on fixed validation chunks and noise."""
        cfg, generator = self.settings.agent, torch.Generator().manual_seed(0)
        batch = self.held_out.sample(HELD_OUT, **cfg.chunks, generator=generator)
        return self.agent.diagnose(batch, generator)

    def save(self, folder: Path) -> None:
        """Write a checkpoint.

        Raises:
            TrainingDiverged: If a weight is not finite, with nothing written.
        """
        weights = snapshot(self.agent)
        check_finite(weights, at=str(self))
        actions, collector = self.collector.state()
        groups = {
            "agent": weights,
            "collector": actions,
            "random": {"training": self.generator.get_state(), "acting": self.acting.get_state()},
        }
        if self.replay.added > self._rows_written:
            rows = self.replay.online_rows(self._rows_written)
            part = checkpoint.save_rows(
                folder, first=self._rows_written, last=self.replay.added, tensors=rows
            )
            self._parts, self._rows_written = (*self._parts, part), self.replay.added
        checkpoint.save(
            folder,
            step=self.step,
            tensors={f"{group}.{k}": t for group, held in groups.items() for k, t in held.items()},
            state={
                "collector": collector,
                "data": self.data_checksum,
                "best": self.best,
                "evaluating": self.evaluating,
                "settings": self.result_settings(),
            },
            parts=self._parts,
            best=self.best.step,
        )

    def load(self, folder: Path) -> None:
        """Restore the newest intact checkpoint.

        Also raises what `checkpoint.load` raises.

        Raises:
            ValueError: If data, settings or device differ from those of the run.
        """
        saved = checkpoint.load(folder)
        tensors, state, run = saved.tensors, saved.state, folder.parent
        if state["data"] != self.data_checksum:
            raise ValueError(
                f"the data read now are not those the run in {run} began with, so it cannot be continued. "
                "Put the files back, name their new folder with --data, or start a new run."
            )
        for name, value in self.result_settings().items():
            # A setting that is newer than the run has its default in both.
            if (began := state["settings"].get(name, value)) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the run in {run} began with {began!r}, so it cannot be continued. "
                    "Undo the change in its config.json."
                )
        self.restore_agent(tensors, run)
        for rows in saved.rows:
            self.replay.load_online(rows, self.replay.added)
        self.collector.load_state(under(tensors, "collector"), state["collector"])
        self.step, self.best = saved.step, Best(*state["best"])
        self.evaluating = state["evaluating"]
        self._parts, self._rows_written = saved.parts, self.replay.added

    def restore_agent(self, tensors: Mapping[str, Tensor], run: Path) -> None:
        """Restore the agent and the random generators. Raises: ValueError on another kind of device."""
        if tensors["random.training"].shape != self.generator.get_state().shape:
            raise ValueError(
                f"the run in {run} drew its noise on a device of another kind than {self.settings.machine.device} "
                "(--noise-on device), so its numbers cannot be drawn here; give the --device it began with"
            )
        restore(self.agent, under(tensors, "agent"))
        self.generator.set_state(tensors["random.training"])
        self.acting.set_state(tensors["random.acting"])

    def dump_batch(self) -> str:
        """Write the last batch drawn to the run's folder; return a sentence that says where it is."""
        assert self.batch is not None
        path = self.settings.folder / f"batch-of-step-{self.step:012d}.safetensors"
        tensors = {k: t.cpu().contiguous() for k, t in self.batch._asdict().items()}
        try:
            write_whole(path, to_bytes(tensors))
        except OSError as error:
            return f"The batch could not be written ({error})."
        return f"The last batch drawn is in {path}."

    def result_settings(self) -> dict[str, object]:
        """Settings that results depend on, as a flat JSON-able dictionary, without the data."""
        stored = json.loads(json.dumps(flat(self.settings)))
        return {name: value for name, value in stored.items() if name != "data"}


def check_sizes(widths: tuple[int, int], env: gymnasium.Env, name: str) -> None:
    """Raise ValueError if the sizes of data and environment differ."""
    spaces = {"observations": env.observation_space, "actions": env.action_space}
    for (what, space), width in zip(spaces.items(), widths, strict=True):
        if space.shape != (width,):
            raise ValueError(
                f"{what} of the data have {width} entries, those of {name} have shape {space.shape}; these are data of "
                "another environment. Give --data the right folder."
            )
