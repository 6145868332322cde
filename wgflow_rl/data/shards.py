"""Data in many files, of which only some are in memory at a time: what the files hold, and the order of their turns."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wgflow_rl.data.episodes import Episodes, row_bytes


@dataclass(frozen=True)
class Shard:
    """One file, known from its headers."""

    path: Path
    rows: int  # transitions
    reading: int  # bytes needed at most while it is read, its transitions included
    checksum: int  # over the checksums of its arrays, which reading compares with their bytes


class Shards:
    """A data set in files of one environment, each read when its turn comes.

    Args:
        files: at least one.
        widths: sizes of an observation and of an action.
        read: gives the checked transitions of a file. It is called in another thread, so it must change nothing.
        memory: bytes for the resident rows and the file that is being read.

    Raises:
        ValueError: If not even one file fits into `memory`.
    """

    def __init__(
        self,
        files: Sequence[Shard],
        *,
        widths: tuple[int, int],
        read: Callable[[Path], Episodes],
        memory: float,
    ):
        self.files, self.widths, self._read = list(files), widths, read
        self.rows = sum(file.rows for file in files)
        row, largest = row_bytes(widths), max(file.rows for file in files)
        reading = max(file.reading for file in files)
        fitting = int((memory - reading) // row)
        if fitting >= self.rows:
            self.resident = self.rows
        elif fitting >= largest:
            self.resident = (
                fitting // largest * largest
            )  # files of one size are then resident equally long
        else:
            raise ValueError(
                f"{memory / 1e9:.3g} GB is too little memory for the files in {files[0].path.parent}: to read and hold "
                f"one of {largest:,} transitions takes {(reading + largest * row) / 1e9:.3g} GB. Give --memory-gb at "
                "least that much."
            )

    def __len__(self) -> int:
        return self.rows

    def read(self, number: int) -> Episodes:
        """The transitions of a file. Raises: ValueError naming it, if it is damaged or has other rows than at first."""
        file = self.files[number]
        episodes = self._read(file.path)
        if len(episodes) != file.rows:
            raise ValueError(
                f"{file.path} was changed while it was in use; put it back, or start a new run"
            )
        return episodes

    def parts(self) -> Iterator[Episodes]:
        """All transitions, file after file."""
        return map(self.read, range(len(self.files)))

    def head(self) -> Episodes:
        """The transitions of the first file, to learn scales from."""
        return self.read(0)

    def checksum(self, crc: int = 0) -> int:
        """Of every array of every file, continuing `crc`; from recorded checksums, so nothing is read for it."""
        return zlib.crc32(
            repr([(f.path.name, f.rows, f.checksum) for f in self.files]).encode(), crc
        )


class Turns:
    """Which files are resident after so many swaps: a function of (files, seed) alone, so a resumed run has the same.

    Files take turns, every pass over them in a new random order. Each is written over the oldest rows of a ring of
    `shards.resident` rows. Reading the next one ahead, in a thread, hides its time and changes nothing.
    """

    def __init__(self, shards: Shards, *, seed: int):
        self.shards, self.seed = shards, seed
        self._all_fit = shards.resident == shards.rows
        self._first = next(
            n for n in itertools.count(1) if self._before(n) >= shards.resident
        )  # fill the ring
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._ahead: tuple[int, Future[Episodes]] | None = None

    def resident(self, swaps: int) -> range:
        """The turns whose rows are in the ring; where everything fits, nothing is ever swapped."""
        end = self._first + (0 if self._all_fit else swaps)
        first = end - 1
        while first > 0 and self._before(first) > self._before(end) - self.shards.resident:
            first -= 1
        return range(first, end)

    def row(self, turn: int) -> int:
        """Where in the ring the rows of a turn begin."""
        return self._before(turn) % self.shards.resident

    def take(self, turn: int) -> Episodes:
        """The transitions of a turn. Raises: ValueError naming a file that cannot be used."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == turn:
            return ahead[1].result()
        return self.shards.read(self._number(turn))

    def read_ahead(self, turn: int) -> None:
        """Begin to read the file of a turn, if it will ever come."""
        if self._all_fit:
            return
        self._ahead = turn, self._thread.submit(self.shards.read, self._number(turn))

    def stop(self) -> None:
        """Forget what was read ahead."""
        self._ahead = None

    def _order(self, passes: int) -> np.ndarray:
        return np.random.default_rng((self.seed, passes)).permutation(len(self.shards.files))

    def _number(self, turn: int) -> int:
        passes, place = divmod(turn, len(self.shards.files))
        return int(self._order(passes)[place])

    def _before(self, turn: int) -> int:
        """Rows of all turns before this one."""
        passes, place = divmod(turn, len(self.shards.files))
        return passes * self.shards.rows + sum(
            self.shards.files[i].rows for i in self._order(passes)[:place]
        )
