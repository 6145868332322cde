"""Every example runs, ends by printing its number, and leaves a picture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(name: str, picture: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / name), str(picture)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300).stdout


def test_first_drift(tmp_path):
    pytest.importorskip("matplotlib")
    said = run("first_drift.py", tmp_path / "picture.png")
    before, after, floor = (float(n) for n in re.findall(r"(-?\d\.\d{4})", said)[:3])
    assert before > 0.2
    assert abs(after) < 0.02 > abs(floor)
    assert (tmp_path / "picture.png").stat().st_size > 20_000


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 90, path.name
