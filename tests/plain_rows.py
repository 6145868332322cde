"""Transitions as plain lists of rows, to compare the ring and the shards with."""

from pathlib import Path

import numpy as np

from wgflow_rl.data import Episodes
from wgflow_rl.data.episodes import row_bytes
from wgflow_rl.data.shards import Shard, Shards

GAMMA = 0.9


def make_row(t, *, ended=False, done=False):
    return {
        "obs": np.float32([t, 0]),
        "actions": np.float32([t / 1000]),
        "rewards": np.float32(-(t % 7)),
        "masks": np.float32(not done),
        "terminals": ended or done,
        "next_obs": np.float32([t, 1]),
    }


def as_episodes(rows):
    stack = lambda name: np.stack([r[name] for r in rows])
    return Episodes(
        observations=stack("obs"),
        actions=stack("actions"),
        next_observations=stack("next_obs"),
        rewards=stack("rewards"),
        masks=stack("masks"),
        terminals=stack("terminals").astype(bool),
        env="test",
    )


def model_chunk(rows, first, chunk):
    """The chunk that starts at rows[first], by the plain reading of the definition."""
    taken, valid, ret, alive = [], [], 0.0, 1.0
    t = first
    for i in range(chunk):
        valid.append(1.0)
        taken.append(rows[t])
        ret += alive * GAMMA**i * float(rows[t]["rewards"])
        alive *= float(rows[t]["masks"])
        if rows[t]["terminals"] or t == len(rows) - 1:
            break
        t += 1
    short = chunk - len(taken)
    taken += [taken[-1]] * short
    valid += [0.0] * short
    after = rows[first + chunk : first + 2 * chunk] if valid[-1] else []
    ends = [i for i, row in enumerate(rows[first:]) if row["terminals"]]
    after = after[: max(0, ends[0] + 1 - chunk)] if ends else after
    return {
        "next_actions": np.stack([r["actions"] for r in (after or taken[-1:])]),
        "next_valid": np.array([1.0] * len(after) + [0.0] * (chunk - len(after))),
        "obs": taken[0]["obs"],
        "actions": np.stack([r["actions"] for r in taken]),
        "valid": np.array(valid),
        "returns": ret,
        "discount": GAMMA**chunk * alive,
        "next_obs": taken[-1]["next_obs"],
        "complete": max(valid[-1], 1 - alive),
    }


WIDTHS = (2, 1)
ROW = row_bytes(WIDTHS)


def part(first, lengths):
    """Trajectories of these lengths; a row's observation says its number in the data set and its trajectory's."""
    rows = sum(lengths)
    number = np.arange(first, first + rows, dtype=np.float32)
    trajectory = np.repeat(np.arange(len(lengths)), lengths) + first
    return Episodes(
        observations=np.stack([number, trajectory], 1).astype(np.float32),
        actions=np.zeros((rows, 1), np.float32),
        next_observations=np.stack([number + 1, trajectory], 1).astype(np.float32),
        rewards=np.full(rows, -1, np.float32),
        masks=np.ones(rows, np.float32),
        terminals=np.isin(np.arange(rows), np.cumsum(lengths) - 1),
        env="test",
    )


def shards(files, *, resident):
    """Files given by the lengths of their trajectories, and memory for so many rows."""
    starts = np.cumsum([0, *map(sum, files)])
    contents = {Path(f"{i}.npz"): part(starts[i], lengths) for i, lengths in enumerate(files)}
    return Shards(
        [
            Shard(path, len(p), reading=1000, checksum=i)
            for i, (path, p) in enumerate(contents.items())
        ],
        widths=WIDTHS,
        read=contents.__getitem__,
        memory=1000 + resident * ROW,
    )
