"""Data sets larger than memory: shards, and the deterministic order in which they are resident."""

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
    """One file, described by its headers."""

    path: Path
    rows: int  # transitions
    reading: int  # peak bytes while it is read, including its transitions
    checksum: int  # CRC-32 of the recorded checksums of its arrays


class Shards:
    """A data set in several files of one environment, of which some are resident at a time.

    Args:
        files: shards, at least one.
        widths: (observation size, action size).
        read: reads and validates the transitions of a file. Called in another thread: no side
            effects.
        memory: bytes for the resident rows and for the file being read.

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
            # equal files are resident for equally long
            self.resident = fitting // largest * largest
        else:
            raise ValueError(
                f"{memory / 1e9:.3g} GB is too little memory for the files in {files[0].path.parent}: to read and hold "
                f"one of {largest:,} transitions takes {(reading + largest * row) / 1e9:.3g} GB. Give --memory-gb at "
                "least that much."
            )

    def __len__(self) -> int:
        return self.rows

    def read(self, number: int) -> Episodes:
        """Read the transitions of a file.

        Raises:
            ValueError: If the file is damaged or was changed; the message names it.
        """
        file = self.files[number]
        episodes = self._read(file.path)
        if len(episodes) != file.rows:
            raise ValueError(
                f"{file.path} was changed while it was in use; restore it, or start a new run"
            )
        return episodes

    def parts(self) -> Iterator[Episodes]:
        """Iterate over the transitions of every file."""
        return map(self.read, range(len(self.files)))

    def head(self) -> Episodes:
        """Transitions from which observation statistics are computed: those of the first file."""
        return self.read(0)

    def checksum(self, crc: int = 0) -> int:
        """CRC-32 over the recorded checksums of all files, continuing `crc`; no file is read."""
        return zlib.crc32(
            repr([(f.path.name, f.rows, f.checksum) for f in self.files]).encode(), crc
        )


class Rotation:
    """Order in which shards are resident, a function of (files, seed, number of swaps) alone.

    Turn t = 0, 1, ... belongs to one file; every pass over the files has a new random order. The
    rows of a turn replace the oldest rows of a ring of `shards.resident` rows. The next file is
    read ahead in a thread.
    """

    def __init__(self, shards: Shards, *, seed: int):
        self.shards, self.seed = shards, seed
        self._all_fit = shards.resident == shards.rows
        # Number of turns that fill the ring.
        self._first = next(n for n in itertools.count(1) if self._before(n) >= shards.resident)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._ahead: tuple[int, Future[Episodes]] | None = None

    def resident(self, swaps: int) -> range:
        """Turns whose rows are in the ring after `swaps` swaps; without effect if all files fit."""
        end = self._first + (0 if self._all_fit else swaps)
        first = end - 1
        while first > 0 and self._before(first) > self._before(end) - self.shards.resident:
            first -= 1
        return range(first, end)

    def row(self, turn: int) -> int:
        """Index in the ring of the first row of a turn."""
        return self._before(turn) % self.shards.resident

    def take(self, turn: int) -> Episodes:
        """Return the transitions of a turn.

        Raises:
            ValueError: The message names a file that cannot be read.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == turn:
            return ahead[1].result()
        return self.shards.read(self._number(turn))

    def read_ahead(self, turn: int) -> None:
        """Start to read the file of a turn in the background, unless all files fit."""
        if self._all_fit:
            return
        self._ahead = turn, self._thread.submit(self.shards.read, self._number(turn))

    def stop(self) -> None:
        """Drop the file read ahead."""
        self._ahead = None

    def _order(self, passes: int) -> np.ndarray:
        return np.random.default_rng((self.seed, passes)).permutation(len(self.shards.files))

    def _number(self, turn: int) -> int:
        passes, place = divmod(turn, len(self.shards.files))
        return int(self._order(passes)[place])

    def _before(self, turn: int) -> int:
        """Total number of rows of all turns before this one."""
        passes, place = divmod(turn, len(self.shards.files))
        return passes * self.shards.rows + sum(
            self.shards.files[i].rows for i in self._order(passes)[:place]
        )
