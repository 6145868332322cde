"""What `import wgflow` costs, and that no call leaves torch changed."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import wgflow
from tests.public_calls import CALLS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "matplotlib",
    "pykeops",
    "geomloss",
    "gymnasium",
    "mujoco",
    "ogbench",
    "tensorboard",
    "tqdm",
    "pandas",
    "sklearn",
)
HEAVY_PARTS = (
    "scipy.optimize",
    "scipy.stats",
    "scipy.sparse",
    "torch._dynamo",
    "torch._inductor",
    "wgflow_rl",
)
# Processor time, and torch first in the same process: neither a loaded machine nor a cold disk can fail it.
CODE = f"""
import sys, time
start = time.process_time(); import torch
middle = time.process_time(); before = set(sys.modules); import wgflow
print(middle - start, time.process_time() - middle)
print([m for m in {HEAVY + HEAVY_PARTS!r} if m in set(sys.modules) - before])
"""


def test_importing_the_library_costs_less_than_half_of_importing_torch():
    """`import wgflow` < 1.5 x `import torch`: the least of some tries, one of which is enough."""
    costs = []
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True
        )
        times, loaded = done.stdout.splitlines()
        assert loaded == "[]"
        base, more = map(float, times.split())
        costs.append(1 + more / base)
        if costs[-1] < 1.5:
            return
    pytest.fail(f"import wgflow took {min(costs):.2f} times as long as import torch")


def state() -> dict:
    """Everything about the process that a call could change behind its caller's back."""
    numbers = np.random.get_state()  # noqa: NPY002 - its owner is whoever seeded it, not the library
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "matmul": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "mkldnn precision": getattr(
            getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None
        ),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "sdp": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": (numbers[0], numbers[1].tolist(), *numbers[2:]),
        "python seed": random.getstate(),
    }


@pytest.mark.parametrize("name", [name for name in CALLS if hasattr(wgflow, name)])
def test_no_call_changes_the_state_of_the_process(name):
    x, y = (torch.randn(6, 2, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    before = state()
    CALLS[name](x, y)
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_every_public_name_has_a_call():
    """A new public function or class gets a line in tests/public_calls.py, and with it the laws that go over all."""
    without = {
        "Kernel",
        "Field",
        "Functional",
        "keops_warmup",
        "capturable",
    }  # abstract; a compilation of some seconds; calls no sum
    modules = {name for name in wgflow.__all__ if type(getattr(wgflow, name)).__name__ == "module"}
    assert set(wgflow.__all__) - without - modules - set(CALLS) == set()
