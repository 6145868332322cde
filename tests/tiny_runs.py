"""Training runs of a second: a walk in place of a simulator, made-up data, no pictures."""

import os
import signal

import numpy as np
import torch

from tests.walk import WalkHome
from wgflow_rl import data, envs, train
from wgflow_rl.data.replay import FIELDS
from wgflow_rl.training import checkpoint, runlog
from wgflow_rl.training.settings import Settings, from_command_line
from wgflow_rl.training.table import read_rows

FLAGS = (
    "--offline-steps 5 --online-steps 7 --online-start 1 --hidden 4 --batch 4 --candidates 3 --top-k 2 --generated 2 "
    "--target-samples 1 --act-samples 2 --chunk 2 --eval-every 4 --eval-episodes 2 --checkpoint-every 3 --log-every 3 "
    "--threads 1"
)


def walks(*_, **__):
    """Stand in for `data.load`: (training, validation) data, made up."""
    numbers, rows = np.random.default_rng(0), 60
    x = numbers.normal(size=(rows + 1, 2)).astype(np.float32)
    episodes = data.Episodes(
        observations=x[:-1],
        actions=numbers.uniform(-1, 1, (rows, 1)).astype(np.float32),
        next_observations=x[1:],
        rewards=np.full(rows, -1, np.float32),
        masks=np.ones(rows, np.float32),
        terminals=np.arange(rows) % 6 == 5,
        env="walk",
    )
    return episodes, episodes


def small_world(patch):
    """Replace the simulator, the data files and the pictures of a training run."""
    patch(envs, "make", WalkHome)
    patch(data, "load", walks)
    patch(runlog, "provenance", dict)
    patch(
        runlog,
        "draw_curve",
        lambda rows, path, title: runlog.write_whole(path, f"{len(rows)} points"),
    )


def run(folder, *flags):
    train.run(from_command_line([*FLAGS.split(), "--run-dir", str(folder), *flags]), progress=False)


def resume(folder, *flags):
    train.run(Settings.resumed(["--resume", str(folder), *flags]), resume=True, progress=False)


def go_on(folder):
    """Do what a person does after a kill: resume, or start again where there is nothing to resume."""
    (resume if (folder / "config.json").exists() else run)(folder)


def stop_after(monkeypatch, step):
    """Have SIGTERM arrive right after a step."""
    advance = train.Trainer.advance

    def interrupted(self):
        result = advance(self)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(train.Trainer, "advance", interrupted)


def table(folder, name):
    """(columns, rows) of a CSV file without the times in it."""
    columns, rows = read_rows(folder / name)
    return columns, [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]


def outcome(folder):
    """Return everything a run leaves that must not depend on how often it was stopped."""
    tables = [table(folder, name) for name in ("train.csv", "eval.csv")]
    last = checkpoint.load(folder / "checkpoints")
    rows = {f"ring.{k}": torch.cat([part[k] for part in last.rows]).tolist() for k in FIELDS}
    tensors = {k: t.tolist() for k, t in last.tensors.items()}
    return tables, last.step, last.state, tensors, rows


class Recorder:
    """Policy of random chunks that records its inputs and outputs."""

    def __init__(self, chunk):
        self.chunk, self.seen, self.given = chunk, [], []

    def __call__(self, obs, generator):
        self.seen.append(obs.clone())
        self.given.append(torch.rand(len(obs), self.chunk, 1, generator=generator) * 2 - 1)
        return self.given[-1]
