"""Small replay buffers in zarr format 2, as a folder or a zip archive."""

import zipfile
from pathlib import Path

import numpy as np

CHUNK = 11  # rows per chunk, so that small stores have several
PUSHT = "pusht_cchi_v7_replay.zarr"


def write(path: Path, arrays: dict[str, np.ndarray], ends, **options) -> Path:
    """Write data/KEY and meta/episode_ends; `options` are those of zarr's create_array."""
    import zarr

    root = zarr.create_group(path, zarr_format=2)
    named = {f"data/{key}": array for key, array in arrays.items()}
    for name, array in {**named, "meta/episode_ends": np.asarray(ends)}.items():
        root.create_array(
            name,
            data=array,
            chunks=(CHUNK, *array.shape[1:]),
            config={"write_empty_chunks": True},
            **options,
        )
    return path


def zipped(store: Path, path: Path, prefix: str = "", leave_out: str = "") -> Path:
    """Write the files of a store to an archive, below `prefix`."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in store.rglob("*") if p.is_file()):
            name = str(file.relative_to(store))
            if name != leave_out:
                archive.write(file, prefix + name)
    return path


def pusht(path: Path, lengths=(9, 12, 5, 8), seed: int = 0, **changes: np.ndarray) -> Path:
    """Write demonstrations of PushT with random states, actions and keypoints."""
    rng, rows = np.random.default_rng(seed), sum(lengths)
    state = rng.uniform(60, 450, (rows, 5))
    state[:, 4] = rng.uniform(0, 2 * np.pi, rows)
    arrays = {
        "state": state,
        "action": rng.uniform(0, 512, (rows, 2)),
        "keypoint": rng.uniform(0, 512, (rows, 9, 2)),
        "img": rng.integers(0, 256, (rows, 4, 4, 3)),
    }
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()} | changes
    return write(path, arrays, np.cumsum(lengths))
