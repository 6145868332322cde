"""Every example runs as a script, leaves its picture, and ends on a number inside the bound it states."""

import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path for path in (ROOT / "examples").glob("*.py") if path.stem != "run_policy_onnx"
)  # that one wants a file: test_export runs it
QUICK = {"divergences", "kernels_and_shadows"}
NEEDS = {"digits": "sklearn"}
KEPT = {"below": operator.lt, "above": operator.gt, "is": operator.eq, "at most": operator.le}
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
        for path in SCRIPTS
    ],
)
def test_an_example_keeps_the_bound_it_states(script, tmp_path):
    pytest.importorskip("matplotlib")
    if script.stem in NEEDS:
        pytest.importorskip(NEEDS[script.stem])
    if "wgflow_rl" in script.read_text(encoding="utf-8"):
        pytest.importorskip("ogbench")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    env |= {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:wgflow", str(script)],
        capture_output=True, text=True, env=env, cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    stated = re.findall(rf"({NUMBER}) \(({'|'.join(KEPT)}) ({NUMBER})", last)
    assert stated, f"the last line states no bound: {last}"
    for value, kept, bound in stated:
        assert KEPT[kept](float(value), float(bound)), last
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 20_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_begins_with_its_title(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert lines[0] == 'r"""'
    assert set(lines[2]) == {"="}
    assert len(lines[1]) == len(lines[2])
    assert any(line.startswith(".. math::") for line in lines)
    assert lines.count("# %%") >= 2


def test_the_list_of_examples_is_complete():
    named = re.findall(
        r"\]\((\w+\.py)\)", (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    )
    assert sorted(named) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))
