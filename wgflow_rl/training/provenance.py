"""What a run was made with: versions, commit, command line, machine, time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "mujoco", "ogbench", "gymnasium", "robosuite", "wgflow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, without those not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """Package versions, commit (None outside a checkout), command line, machine and time."""
    return {
        "versions": versions(),
        "commit": _commit(),
        "argv": sys.argv,
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    try:
        options = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
        top = subprocess.run(["git", "rev-parse", "--show-toplevel"], **options).stdout.strip()
        if Path(top) != root:  # installed inside another project's checkout
            return None
        describe = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(describe, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
