"""Limits on memory: what a file or a setting asks for is compared with the machine before it is allocated."""

from __future__ import annotations

import os

from wgflow_rl.utils.cli import UserError

# The best compression ratio of deflate, which npz and HDF5 use (zlib's documentation: 1032:1).
MAX_RATIO = 1032


def machine_memory() -> int:
    """Physical memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(needed: int, what: str) -> None:
    """Raise UserError if `what` needs more bytes than this machine has."""
    if needed > (have := machine_memory()):
        raise UserError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory; this machine has {have / 1e9:,.1f} GB"
        )
