"""What is freed stays with the process, where glibc is the one that gives it."""

import os
import platform
import subprocess
import sys

import pytest

STEP = """
import resource, sys
import torch
from wgflow_rl.memory import keep_freed

if sys.argv[1] == "kept":
    print(keep_freed())
before = 0
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 << 20)  # 40 MB, 10,240 pages
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def printed(how, **more):
    here = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", STEP, how], env=here | more, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_a_step_gets_the_memory_that_the_one_before_it_freed():
    answer, faults = printed("kept")
    assert answer == "True"
    assert float(faults) < 400
    (faults,) = printed("as it is")
    assert float(faults) > 4000  # glibc's own way: else there is nothing to be gained


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_who_has_set_malloc_is_left_alone():
    answer, _ = printed("kept", MALLOC_TRIM_THRESHOLD_="100000")
    assert answer == "False"
