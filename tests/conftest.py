"""Settings of the whole suite: threads, no display, a data folder of its own, the same examples in CI.

What a test sees must not depend on the machine: `torch` computes on one thread (TEST_THREADS sets another number) here
and in every child process, and generated data are kept in a folder of the session, never in the user's cache.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

os.environ.pop("MUJOCO_GL", None)  # no test renders unless it asks to; a GL library may be absent
os.environ["MPLBACKEND"] = "agg"
# Read when torch and numpy are imported, here and in child processes, and by gloo.
THREADS = os.environ.setdefault("TEST_THREADS", "1")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = THREADS
os.environ["GLOO_SOCKET_IFNAME"] = "lo"

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# child processes test this tree, installed or not
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

torch.set_num_threads(int(THREADS))  # the tensors of a test are small, and sums repeat bit by bit

# No deadline: the first example pays for caches, and a loaded machine is no wrong theorem.
quiet = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=25, **quiet)
settings.register_profile("ci", max_examples=40, derandomize=True, print_blob=True, **quiet)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default")
)

# ---- what can be tested here -------------------------------------------------------------------------------------

MISSING = [name for name in ("gymnasium", "mujoco", "ogbench") if find_spec(name) is None]


class NeedsSimulators(pytest.Module):
    """A test module that is skipped as a whole."""

    def collect(self):
        pytest.skip(
            f"needs wgflow[rl] (not installed: {', '.join(MISSING)})", allow_module_level=True
        )


LEARNING = r"^\s*(?:from|import) (?:wgflow_rl|tests\.(?:runs|small_agents|plain_rows|walk))\b"


def pytest_pycollect_makemodule(module_path, parent):
    text = module_path.read_text(encoding="utf-8")
    if MISSING and re.search(LEARNING, text, flags=re.MULTILINE):
        return NeedsSimulators.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(
                f"{item.nodeid} has an address in its name, so processes would collect different tests; give ids="
            )


def pytest_runtest_setup():
    """Every test begins with the same state of torch's generator, whichever ran before."""
    torch.manual_seed(0)


# ---- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A temporary folder of this session, shared by the workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def data_folder(session_folder):
    """Keep generated data and measured choices out of the user's cache."""
    folder = session_folder / "wgflow-data"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WGFLOW_DATA", str(folder))
        yield folder


@pytest.fixture(scope="session")
def maze_data(data_folder):
    """Folder with two generated trajectories of the default environment, where `data.load` finds them."""
    from wgflow_rl import data
    from wgflow_rl.training.settings import DEFAULT_ENV

    data.load(DEFAULT_ENV, rows=2000, workers=1, progress=False)  # once: workers wait for a lock
    return data_folder


@pytest.fixture(scope="session")
def official_data():
    """Folder of official data sets, which are not part of the repository.

    $WGFLOW_OFFICIAL_DATA, or ../shared/data beside the checkout: pusht/pusht_cchi_v7_replay.zarr.
    """
    named = os.environ.get("WGFLOW_OFFICIAL_DATA")
    folder = Path(named).expanduser() if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no official data in {folder}: name their folder in WGFLOW_OFFICIAL_DATA")
    return folder


@pytest.fixture
def own_registries(monkeypatch):
    """End what a test registers, and the modules it imports by name, with the test."""
    import sys

    from wgflow_rl import data, envs, plugins
    from wgflow_rl.agents import presets
    from wgflow_rl.training import runlog

    for owner, name in (
        *((presets, name) for name in ("ROWS", "AGENTS", "REGISTERED")),
        *((owner, "SOURCES") for owner in (envs, data)),
    ):
        monkeypatch.setattr(owner, name, dict(getattr(owner, name)))
    monkeypatch.setattr(runlog, "_row_callbacks", [])
    monkeypatch.setattr(plugins, "_imported", [])
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


@pytest.fixture
def benchmark_scripts(monkeypatch):
    """Let the scripts of benchmarks/ be imported by name, as they import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
