"""Every test runs on one thread, without a display, and draws the same examples each time it runs in CI."""

import os

os.environ.pop("MUJOCO_GL", None)  # no test renders unless it asks to; a GL library may be absent

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # the tensors of a test are small, and sums repeat bit by bit

# No deadline: the first example pays for caches, and a loaded machine is no wrong theorem.
settings.register_profile(
    "default", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default")
)
