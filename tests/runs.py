"""Small runs for tests: a run folder without training, and training without simulator, data files and pictures."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.walk import WalkHome
from wgflow_rl import data, envs, train
from wgflow_rl.agents import presets
from wgflow_rl.data.replay import FIELDS
from wgflow_rl.training import checkpoint, loop, runlog
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.runlog import RunLog
from wgflow_rl.training.settings import Settings, as_json, from_command_line
from wgflow_rl.training.snapshot import snapshot

FLAGS = (
    "--offline-steps 5 --online-steps 7 --online-start 1 --hidden 4 --batch 4 --candidates 3 --top-k 2 --generated 2 "
    "--target-samples 1 --act-samples 2 --chunk 2 --eval-every 4 --eval-episodes 2 --checkpoint-every 3 --log-every 3 "
    "--threads 1 --route default"
)


SMALL = {  # 40 offline and 40 online steps
    "offline-steps": 40,
    "online-steps": 40,
    "online-start": 3,
    "data-rows": 2000,
    "threads": 1,
    "route": "default",
    "hidden": "32 32",
    "batch": 16,
    "eval-every": 20,
    "eval-episodes": 3,
    "checkpoint-every": 7,
    "log-every": 5,
}


def flags(folder, **changes):
    """Flags of a `SMALL` run in `folder`, with some settings changed."""
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    settings = SMALL | {"run-dir": folder} | changed
    return [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]


def refused(args, capsys):
    """The one line that `python -m wgflow_rl.train` prints when it cannot go on."""
    with pytest.raises(SystemExit) as end:
        train.main([str(arg) for arg in args])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err[err.rindex("error:") :]


def saved(folder):
    """Steps of the checkpoints that are there."""
    return sorted(int(p.stem[5:]) for p in (folder / "checkpoints").glob("step-*.safetensors"))


def untrained(folder: Path, *flags: str) -> Path:
    """Write a run in the maze (observations of two numbers, actions of two) with one checkpoint, at step 12."""
    settings = from_command_line(["--hidden", "16", "16", "--seed", "3", *flags])
    statistics = {"obs_mean": torch.ones(2), "obs_std": 2 * torch.ones(2)}
    agent = presets.build(settings.agent, obs_dim=2, action_dim=2, **statistics)
    with RunLog(folder, tensorboard=False) as log:
        log.config(as_json(settings))
    tensors = {f"agent.{name}": t for name, t in snapshot(agent).items()}
    state = {"best": [12, 0.5], "evaluating": None}
    checkpoint.save(folder / "checkpoints", step=12, tensors=tensors, state=state)
    return folder


def walks(*_, **__):
    """(training, validation) data, made up."""
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


def tiny_world(patch):
    """Replace all that is slow in training: the simulator, data files and pictures. `patch` is called as setattr."""
    patch(envs, "make", WalkHome)
    patch(data, "load", walks)
    patch(runlog, "provenance", dict)
    patch(
        runlog,
        "draw_curve",
        lambda rows, path, title: runlog.write_whole(path, f"{len(rows)} points"),
    )


def start(folder, *flags):
    flags = [*FLAGS.split(), "--run-dir", str(folder), *flags]
    loop.run(from_command_line(flags), progress=False)


def resume(folder, *flags):
    loop.run(Settings.resumed(["--resume", str(folder), *flags]), resume=True, progress=False)


def start_or_resume(folder):
    """What a user does after a kill: --resume, or the command again if there is nothing to resume."""
    resume(folder) if (folder / "config.json").exists() else start(folder)


def stop_after(monkeypatch, step):
    """Send SIGTERM to this process during `step`."""
    advance = loop.Trainer.advance

    def interrupted(self):
        result = advance(self)
        if self.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(loop.Trainer, "advance", interrupted)


def outcome(folder):
    """Everything a run leaves that must not depend on kills."""
    tables = []
    for name in ("train.csv", "eval.csv"):
        columns, rows = read_rows(folder / name)
        tables.append((columns, [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]))
    last = checkpoint.load(folder / "checkpoints")
    parts = {f"ring.{k}": [part[k] for part in last.rows] for k in FIELDS}
    rows = {k: torch.cat(each).tolist() if each else [] for k, each in parts.items()}
    tensors = {k: t.tolist() for k, t in last.tensors.items()}
    return tables, last.step, last.state, tensors, rows
