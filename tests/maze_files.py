"""Files of OGBench's medium maze, as small as needed."""

import numpy as np

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
STEM = "pointmaze-medium-navigate-v0"  # of the file names


def maze_file(path, lengths, seed=0):
    """Write trajectories of these many rows, all in the first free cell, and return their arrays."""
    rows = sum(lengths)
    rng = np.random.default_rng(seed)
    position = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    arrays = {
        "observations": position,
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "qpos": position,
        "qvel": np.zeros((rows, 2), np.float32),
        "terminals": np.isin(np.arange(rows), np.cumsum(lengths) - 1),
    }
    np.savez(path, **arrays)
    return arrays


def change(path, **changes):
    """Rewrite a file with some arrays replaced, changed by a function, or taken out by None."""
    arrays = dict(np.load(path, allow_pickle=False))
    for name, new in changes.items():
        arrays[name] = new(arrays[name]) if callable(new) else new
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
