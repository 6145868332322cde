"""Where a benchmark's numbers come from: machine, versions, commit, command."""

import platform
from pathlib import Path

from wgflow_rl.training.provenance import provenance as of_run


def provenance() -> dict:
    """What `wgflow_rl` records of a run, with the processor's name and no folder of the machine."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in info.read_text().splitlines()
                if "model name" in line
            ),
            cpu,
        )
    record = of_run()
    argv = [Path(word).name if Path(word).is_absolute() else word for word in record["argv"]]
    return record | {"argv": argv, "processor": cpu}
