"""Command line for data sets: `python -m wgflow_rl.data list|download|generate|check|info`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from wgflow_rl import data, envs, plugins
from wgflow_rl.data import generated, ogbench, pusht, statistics
from wgflow_rl.utils.cli import UserError, one_line_errors
from wgflow_rl.utils.files import expand_user

Env = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(help="Like cube-single-play-singletask-task2-v0.")
]
AS_IN_TRAINING = tyro.conf.arg(aliases=("--data",))
DOWNLOADS = Path("~/.ogbench/data")


@dataclass(frozen=True)
class List:
    """List the data sets with their environments and the files found on this machine."""

    folder: Path = DOWNLOADS
    """Folder to search in addition to that of generated data, $WGFLOW_DATA or ~/.cache/wgflow."""
    plugin: plugins.Flag = ()

    def run(self) -> None:
        environments: dict[str, list[str]] = {}
        for env in envs.names():
            environments.setdefault(envs.parse(env).dataset, []).append(env)
        for dataset, (first, *others) in environments.items():
            print(f"{dataset}: {first}" + (f" and {len(others)} more" if others else ""))
            for folder, files in _found(first, self.folder).items():
                size = sum(path.stat().st_size for path in files)
                print(f"  {folder}: {len(files)} file{'s'[: len(files) > 1]}, {size / 1e6:,.0f} MB")


def _found(env: str, downloads: Path) -> dict[Path, list[Path]]:
    """Folders with files of an environment's data set: downloads first, then generated data."""
    name, found = envs.parse(env), {}
    roots = [root for root in _roots(downloads) if root.is_dir()]
    for folder in (path for root in roots for path in sorted((root, *root.iterdir()))):
        if files := [
            *folder.glob(f"{name.dataset}.npz"),
            *folder.glob(f"{name.dataset}-val.npz"),
            *folder.glob(f"{name.dataset}-[0-9][0-9][0-9]*.npz"),
            *folder.glob(f"{name.suite}/{name.kind}/*.hdf5"),
            *(pusht.files(folder) if name.source == "pusht" else ()),
        ]:
            found[folder] = files
    return found


def _roots(downloads: Path) -> list[Path]:
    """Folders that may hold data; those in a home folder that does not exist are left out."""
    roots = []
    for root in (lambda: expand_user(downloads), data.cache_root):
        with contextlib.suppress(UserError):
            roots.append(root())
    return roots


def _check_shards(shards: int, env: str) -> None:
    if not 0 <= shards <= 1000:
        raise ValueError(
            f"--shards is {shards}; wanted 0 for a single data set, or the number of shards, at most 1,000"
        )
    if shards and envs.parse(env).source != "ogbench":
        raise ValueError(
            f"--shards is {shards}, but only data of OGBench's environments can be sharded; "
            "leave it out"
        )


@dataclass(frozen=True)
class Generate:
    """Generate data with scripted policies, unless present.

    An interrupted generation is continued.
    """

    env: Env
    rows: int | None = None
    """Training transitions, per shard if sharded (default: as many as the official set)."""
    shards: int = 0
    """Number of shards, made with seeds --seed, --seed + 1, ...; 0: a single data set."""
    seed: int = 0
    folder: Path | None = None
    """Parent of the data set's folder (default: $WGFLOW_DATA, or ~/.cache/wgflow)."""
    workers: int | None = None
    """Worker processes (default: one per core)."""
    plugin: plugins.Flag = ()

    def run(self) -> None:
        _check_shards(self.shards, self.env)
        root = data.cache_root() if self.folder is None else expand_user(self.folder)
        folder = self._make(root, self.seed)
        if self.shards:
            folder = self._collect(folder, root)
        print(folder)
        Check(self.env, folder).run()

    def _make(self, root: Path, seed: int) -> Path:
        return generated.generate(
            self.env, root=root, rows=self.rows, seed=seed, workers=self.workers
        )

    def _collect(self, first: Path, root: Path) -> Path:
        """Hard-link the files of every seed into one folder, as shards."""
        folder = root / f"{first.name}-shards{self.shards}"
        folder.mkdir(exist_ok=True)
        stem = envs.parse(self.env).dataset
        for number in range(self.shards):
            made = self._make(root, self.seed + number)
            for end in ("", "-val"):
                shard = folder / f"{stem}-{number:03d}{end}.npz"
                if not shard.exists():
                    os.link(made / f"{stem}{end}.npz", shard)
        return folder


@dataclass(frozen=True)
class Download:
    """Download the official files, unless present. An interrupted download is continued."""

    env: Env
    folder: Path | None = None
    """Folder to download to (default: ~/.ogbench/data; for data that cannot be generated, the cache,
    where training looks for them)."""
    mirror: str | None = None
    """URL of a server with the official one's layout, used instead.
    Its SHA256SUMS, if any, is checked."""
    shards: int = 0
    """Number of shards of the 100M data set, each of 1M rows; 0: the ordinary data set."""
    plugin: plugins.Flag = ()

    def run(self) -> None:
        _check_shards(self.shards, self.env)
        can_generate = envs.parse(self.env).source in generated.MAKERS
        folder = self.folder or (DOWNLOADS if can_generate else data.cache_root())
        sharded = {"shards": self.shards} if self.shards else {}  # known to OGBench's reader alone
        folder = data.reader(self.env).download(
            self.env, expand_user(folder), mirror=self.mirror, **sharded
        )
        Check(self.env, folder).run()


@dataclass(frozen=True)
class Check:
    """Read and validate every file as training does; exit with code 2 at the first error."""

    env: Env
    folder: Annotated[Path, AS_IN_TRAINING]
    """Folder with the environment's files, or one of the files."""
    plugin: plugins.Flag = ()

    def run(self) -> None:
        for part in data.reader(self.env).contents(expand_user(self.folder), self.env):
            print(f"{part.source}\n  {part.summary()}")


@dataclass(frozen=True)
class Info:
    """Print and draw statistics of the training data: sizes, returns, successes, actions.

    A data set in a single file is labelled for each of its tasks, shards for the given one.
    """

    env: Env
    folder: Annotated[Path | None, AS_IN_TRAINING] = None
    """Folder with the environment's files (default: the newest one that `list` shows;
    a registered reader needs none)."""
    picture: Path | None = None
    """PNG to write (default: next to the files, or here if that folder is read-only)."""
    plugin: plugins.Flag = ()

    def run(self) -> None:
        folder, dataset = self._folder(), envs.parse(self.env).dataset
        train, _ = data.load(self.env, folder=folder)
        own = statistics.collect(train.parts())
        tasks = [e for e in envs.names() if envs.parse(e).dataset == dataset and "-task" in e]
        if isinstance(train, data.Shards) or not tasks:
            tasks = [self.env]  # reading all shards for every task would take hours
        for env in tasks:
            if env == self.env or isinstance(train, data.Shards):
                found = own
            else:
                found = statistics.collect([ogbench.relabel(train, env)])
            print("\n  ".join([f"{env}:", *found.lines()]))
        near = folder or Path()
        if near.is_file() or near.suffix == ".zarr":
            near = near.parent
        near = near if os.access(near, os.W_OK) else Path()
        picture = self.picture or near / f"{dataset}.png"
        statistics.draw(own, picture, self.env)
        print(picture)

    def _folder(self) -> Path | None:
        if self.folder is not None:
            return expand_user(self.folder)
        if isinstance(data.reader(self.env), data.custom.Reader):
            return None
        found = _found(self.env, DOWNLOADS)
        if not found:
            how = "generate" if envs.parse(self.env).source in generated.MAKERS else "download"
            raise ValueError(
                f"no data of {self.env} in {DOWNLOADS} or {data.cache_root()}; give --folder DIR, or {how} some: "
                f"python -m wgflow_rl.data {how} {self.env}"
            )
        return max(found, key=lambda folder: max(path.stat().st_mtime for path in found[folder]))


COMMANDS: Any = List | Download | Generate | Check | Info


def main(args: list[str] | None = None) -> None:
    """Run the command given on the command line."""
    command = tyro.cli(COMMANDS, args=args, prog="python -m wgflow_rl.data")
    with one_line_errors():
        plugins.load(command.plugin)
        command.run()


if __name__ == "__main__":
    main()
