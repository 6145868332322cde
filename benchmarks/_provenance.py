"""Where a benchmark's numbers come from: machine, versions, commit, command."""

import platform
from pathlib import Path

from wgflow_rl import runlog


def provenance() -> dict:
    """What `wgflow_rl` records of a run, with the processor's name."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line),
            cpu,
        )
    return runlog.provenance() | {"processor": cpu}
