"""What the README shows runs, and the files it points to exist."""

import re
from pathlib import Path

import pytest

from tests.children import python

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(code, tmp_path):
    """Run a block as pasted into a file, in a process of its own."""
    script = tmp_path / "pasted.py"
    script.write_text(code, encoding="utf-8")
    done = python(script, cwd=tmp_path, WGFLOW_DATA=str(tmp_path))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_block_of_the_library_runs_as_pasted(tmp_path):
    (code,) = (block for block in BLOCKS if "wgflow_rl" not in block)
    before, after = map(float, re.findall(r"tensor\((.*?)\)", " ".join(run(code, tmp_path))))
    assert 4 < before < 6
    assert abs(after) < 0.2


def test_the_block_of_reinforcement_learning_runs_as_pasted(tmp_path):
    pytest.importorskip("ogbench")
    (code,) = (block for block in BLOCKS if "wgflow_rl" in block)
    assert run(code + "print(*actions.shape)", tmp_path) == ["128", "5", "2"]
