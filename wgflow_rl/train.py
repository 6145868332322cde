"""Offline, then online training of one agent: `python -m wgflow_rl.train [--env ...]`, continued by `--resume DIR`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium
import torch
from safetensors.torch import save as to_bytes
from tqdm import tqdm

from wgflow_rl import checkpoint, data, envs, methods, networks, ops, routing
from wgflow_rl.batch import Batch
from wgflow_rl.cli import one_line_errors
from wgflow_rl.files import write_whole
from wgflow_rl.finite import TrainingDiverged, Watch, are_finite, check_finite, refusals_are_divergence
from wgflow_rl.graphs import Captured
from wgflow_rl.guard import Guard
from wgflow_rl.interrupt import StopRequest
from wgflow_rl.replay import Replay
from wgflow_rl.rollout import Collector, evaluate
from wgflow_rl.runlog import RunLog, check_folder
from wgflow_rl.seeds import asked, last_common_step
from wgflow_rl.settings import Settings, as_json, of_results
from wgflow_rl.snapshot import restore, snapshot
from wgflow_rl.stacked import Stacked
from wgflow_rl.updates import Outcome, Plain, Update, Work, counts_updates, together
from wgflow_rl.workers import environments

SETTLED = 500  # updates after which a narrow policy is no longer its initialisation
COLLAPSED = 0.2  # spread ratio under which a policy no longer covers its data (docs/theory.md)
EVAL_ENVS = 8  # environments an evaluation plays on; an arm takes 170 MB each
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
        return "online" if self.step > self.settings.schedule.offline_steps else "offline"

    @property
    def _now(self) -> str:
        return f"step {self.step} ({self.phase})"

    def _weights(self) -> dict[str, torch.Tensor]:
        return snapshot(self.agent.modules, self.agent.optimiser)

    def advance(self) -> dict[str, torch.Tensor]:
        """One step: offline an update; online an environment step, then an update. Returns scalars to log.

        Raises: TrainingDiverged naming what is not finite, and the step.
        """
        work = self.draw()
        if work is None:
            return {}
        reduced = networks.reduced(self.settings.precision == "mixed")
        with refusals_are_divergence("update", self._weights, at=self._now), reduced:
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
            ops.anneal_(self.update.optimiser, cfg.lr, cfg.lr_end, collected / schedule.online_steps)
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

    def evaluate(self) -> dict:
        """Success, return and length of `eval_episodes` episodes whose start states depend on (seed, step) alone."""
        self.watch.read()
        result = evaluate(
            self.agent.act,
            self.eval_envs,
            episodes=self.settings.schedule.eval_episodes,
            seed=self.settings.seed,
            first_episode=self.step,
            guard=self.guard,
        )
        success = float(result.success.mean())
        if success >= self.best.success:
            self.best = Best(self.step, success)
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
        batch = self.held_out.sample(HELD_OUT, chunk=cfg.chunk, gamma=cfg.gamma, generator=generator)
        with refusals_are_divergence("diagnostics", self._weights, at=self._now):
            return self.agent.diagnose(batch, generator)

    def save(self, folder: Path) -> None:
        """Write a checkpoint of everything that `load` needs to go on as if nothing had happened.

        Raises: TrainingDiverged, with nothing written, if a weight is not finite: gradients fail before the loss does.
        """
        self.watch.read()
        taken, state = self.collector.state()
        groups = {
            "agent": self._weights(),
            "collector": taken,
            "random": {"training": self.generator.get_state(), "acting": self.acting.get_state()},
        }
        tensors = {f"{group}.{name}": t for group, content in groups.items() for name, t in content.items()}
        check_finite(groups["agent"], at=self._now)
        if self.replay.added > self.written:
            part = checkpoint.save_rows(
                folder,
                first=self.written,
                last=self.replay.added,
                tensors=self.replay.online_rows(self.written),
            )
            self.parts, self.written = (*self.parts, part), self.replay.added
        state |= {"added": self.replay.added, "data": self.data, "best": self.best, "settings": self._what}
        checkpoint.save(
            folder, step=self.step, tensors=tensors, state=state, parts=self.parts, best=self.best.step
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

        # A setting that the version it began with did not have is at the default that does as before.
        began = state.get("settings", {})
        for name, value in self._what.items():
            if began.get(name, value) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the run in {folder.parent} began with {began[name]!r}, so it cannot be "
                    "continued. Undo the change in its config.json."
                )

        def group(name: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}

        restore(self.agent.modules, self.agent.optimiser, group("agent"))
        held = group("replay")  # format 1 wrote every row with the rest
        for rows in (held,) if held else saved.rows:
            self.replay.load_online(rows, self.replay.added)
        self.collector.load_state(group("collector"), state)
        if tensors["random.training"].shape != self.generator.get_state().shape:
            raise ValueError(
                f"the run in {folder.parent} drew its noise on a device of another kind than {self.settings.device} "
                "(--noise-on device), so its numbers cannot be drawn here; resume it with the --device it began with"
            )
        self.generator.set_state(tensors["random.training"])
        self.acting.set_state(tensors["random.acting"])
        self.step, self.best = saved.step, Best(*state.get("best", self.best))
        self.parts, self.written = saved.parts, self.replay.added if saved.parts else 0

    def dump(self, folder: Path) -> Path:
        """Write the last batch drawn, whole, beside what was learned from it. Raises: OSError when the disk is full."""
        assert self.batch is not None
        path = folder / f"batch-of-step-{self.step:012d}.safetensors"
        write_whole(path, to_bytes({k: t.cpu().contiguous() for k, t in self.batch._asdict().items()}))
        return path


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
    """Leave the batch of the step that diverged in the run's folder, and say so in the error."""
    try:
        yield
    except TrainingDiverged as error:
        try:
            where = f"The batch is in {trainer.dump(trainer.settings.folder)}."
        except OSError as full:
            where = f"The batch could not be written ({full})."
        raise TrainingDiverged(f"{error} {where}") from error


def main(args: list[str] | None = None) -> None:
    with one_line_errors():
        runs, resume = asked(sys.argv[1:] if args is None else args)
        run(*runs, resume=resume)


if __name__ == "__main__":
    main()
