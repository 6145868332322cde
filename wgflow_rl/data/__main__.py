"""`python -m wgflow_rl.data list|download|generate|check|info`: find, make, fetch, check or look at data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from wgflow_rl import data, envs
from wgflow_rl.data import facts, generated, ogbench
from wgflow_rl.utils.cli import one_line_errors

Env = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(help="Like cube-single-play-singletask-task2-v0.")
]
DOWNLOADS = Path("~/.ogbench/data")


@dataclass(frozen=True)
class List:
    """Print every data set with its environments, and the files of it that are on this machine."""

    folder: Path = DOWNLOADS
    """Looked through beside $WGFLOW_DATA (or ~/.cache/wgflow), where generated data is kept."""

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
    """Folders that hold files of an environment's data, downloads first, then what was generated here."""
    name, found = envs.parse(env), {}
    roots = [root for root in (downloads.expanduser(), data.cache_root()) if root.is_dir()]
    for folder in (path for root in roots for path in sorted((root, *root.iterdir()))):
        if files := [
            *folder.glob(f"{name.dataset}*.npz"),
            *folder.glob(f"{name.suite}/{name.kind}/*.hdf5"),
        ]:
            found[folder] = files
    return found


def _check_shards(shards: int) -> None:
    if shards < 0:
        raise ValueError(f"--shards is {shards}; wanted 0 for one data set, or how many shards")


@dataclass(frozen=True)
class Generate:
    """Make data with scripted oracles, unless they are there. A generation that was stopped goes on."""

    env: Env
    rows: int | None = None
    """Training transitions, of each shard if there are any (default: as many as the official set)."""
    shards: int = 0
    """0: one data set. Otherwise a folder of so many, each made with its own seed, from --seed on."""
    seed: int = 0
    folder: Path | None = None
    """The data's own folder is made in this one (default: $WGFLOW_DATA, or ~/.cache/wgflow)."""
    workers: int | None = None
    """Processes (default: one a core)."""

    def run(self) -> None:
        _check_shards(self.shards)
        if self.shards and envs.parse(self.env).source != "ogbench":
            raise ValueError(
                f"--shards is {self.shards}, but only data of OGBench's environments come in shards"
            )
        root = data.cache_root() if self.folder is None else self.folder.expanduser()
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
        """Link the files of every seed into one folder, as shards."""
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
    """Fetch the official files, unless they are there. A download that was stopped goes on where it stood."""

    env: Env
    folder: Path = DOWNLOADS
    """Where they are put."""
    mirror: str | None = None
    """A server to ask instead of the official one, with its layout. Its SHA256SUMS is used if it has one."""
    shards: int = 0
    """So many of the 100 shards, a million transitions each, of the 100M data set (default: the ordinary one)."""

    def run(self) -> None:
        _check_shards(self.shards)
        source = data.SOURCES[envs.parse(self.env).source]
        folder = source.download(
            self.env, self.folder.expanduser(), mirror=self.mirror, shards=self.shards
        )
        Check(self.env, folder).run()


@dataclass(frozen=True)
class Check:
    """Read every file as training would; the first thing wrong with one is the error, with exit code 2."""

    env: Env
    folder: Path
    """Holds the environment's files; or one of them."""

    def run(self) -> None:
        source = data.SOURCES[envs.parse(self.env).source]
        for part in source.contents(self.folder.expanduser(), self.env):
            print(f"{part.source}\n  {part.summary()}")


@dataclass(frozen=True)
class Info:
    """Count and draw the training data: sizes, returns, successes, ranges of the actions.

    Data in one piece are counted for each task they serve, shards for the one that is asked for.
    """

    env: Env
    folder: Path | None = None
    """Holds the environment's files (default: the newest such folder that `list` shows)."""
    picture: Path | None = None
    """Where it is drawn (default: a PNG beside the files)."""

    def run(self) -> None:
        folder, dataset = self._folder(), envs.parse(self.env).dataset
        train, _ = data.load(self.env, folder=folder)
        own = facts.gather(train.parts())
        tasks = [e for e in envs.names() if envs.parse(e).dataset == dataset and "-task" in e]
        if isinstance(train, data.Shards) or not tasks:
            tasks = [self.env]  # reading all shards for every task would take hours
        for env in tasks:
            if env == self.env or isinstance(train, data.Shards):
                found = own
            else:
                found = facts.gather([ogbench.relabelled(train, env)])
            print("\n  ".join([f"{env}:", *found.lines()]))
        picture = self.picture or folder / f"{dataset}.png"
        facts.draw(own, picture, self.env)
        print(picture)

    def _folder(self) -> Path:
        if self.folder is not None:
            return self.folder.expanduser()
        found = _found(self.env, DOWNLOADS)
        if not found:
            raise ValueError(
                f"no data of {self.env} in {DOWNLOADS} or {data.cache_root()}; wanted --folder DIR, or make some: "
                f"python -m wgflow_rl.data generate {self.env}"
            )
        return max(found, key=lambda folder: max(path.stat().st_mtime for path in found[folder]))


COMMANDS: Any = List | Download | Generate | Check | Info


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and do what it asks."""
    command = tyro.cli(COMMANDS, args=argv, prog="python -m wgflow_rl.data")
    with one_line_errors():
        command.run()


if __name__ == "__main__":
    main()
