"""`import wgflow` loads little, and no call changes the state of the process."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

import wgflow
from tests.children import python
from tests.public_calls import CALLS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "matplotlib",
    "pykeops",
    "ot",
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
    "scipy.special",
    "scipy.stats",
    "scipy.sparse",
    "torch._dynamo",
    "torch._inductor",
    "wgflow_rl",
)
CODE = f"""
import sys, torch
before = set(sys.modules); import wgflow
print([m for m in {HEAVY + HEAVY_PARTS!r} if m in set(sys.modules) - before])
"""


def test_importing_the_library_imports_little_more_than_torch():
    """A file that uses one field waits for torch, and for no package or slow part of one that it does not use."""
    done = python("-c", CODE, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


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
    # abstract; a compilation of some seconds; calls no sum
    without = {"Kernel", "Field", "Functional", "keops_warmup", "capturable"}
    modules = {name for name in wgflow.__all__ if type(getattr(wgflow, name)).__name__ == "module"}
    assert set(wgflow.__all__) - without - modules - set(CALLS) == set()
