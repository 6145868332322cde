"""Sums over several processes are sums over the union, however it is sharded; what goes wrong is an error, no hang."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wgflow as wg
from tests import ring_worker as ring
from tests.strategies import assert_close
from wgflow.reductions import blocked

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"),
    reason="needs gloo and the loopback device",
)


def start(task: str, size: int, folder: Path, codes=None) -> list[dict]:
    """What each process of a ring saved; `codes`: the exit status expected of each."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outs = [folder / f"{rank}.pt" for rank in range(size)]
    command = [sys.executable, "-m", "tests.ring_worker", task, str(folder / "store")]
    running = [
        subprocess.Popen([*command, str(r), str(size), str(out)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for r, out in enumerate(outs)
    ]  # fmt: skip
    try:
        errors = [p.communicate(timeout=600)[1] for p in running]
    finally:
        for p in running:
            p.kill()
    for p, said, code in zip(running, errors, codes or [0] * size, strict=True):
        assert p.returncode == code, said
    return [torch.load(out, weights_only=True) if out.exists() else {} for out in outs]


@pytest.fixture(scope="module", params=[2, 3])
def parts(request, tmp_path_factory):
    return start("laws", request.param, tmp_path_factory.mktemp("ring"))


def joined(parts, name, like):
    """The results of a case on all ranks, one after the other along their points."""
    columns = zip(*(part[name] for part in parts), strict=True)
    return [torch.cat(c, axis) for c, axis in zip(columns, like, strict=True)]


CASE_AXES = (-1, -2, -2, -2, -1)  # log_mass, shift, dx, dy, d log w


def both(parts, name, case):
    whole = case.whole()
    return zip(joined(parts, name, CASE_AXES[: len(whole)]), whole, strict=True)


def named(dtype):
    return [name for name, case in ring.CASES.items() if case.dtype == dtype]


@pytest.mark.parametrize("name", named(torch.float64))
def test_the_ring_is_the_sum_over_the_union_in_value_and_gradient(parts, name):
    for sharded, whole in both(parts, name, ring.CASES[name]):
        assert_close(sharded, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "name", [*named(torch.float32), *named(torch.float16), *named(torch.bfloat16)]
)
def test_the_ring_rounds_as_one_process_does(parts, name):
    """Blocks are added in float64 and rounded once; of gradients each block is rounded to float32."""
    eps = torch.finfo(ring.CASES[name].dtype).eps
    for sharded, whole in both(parts, name, ring.CASES[name]):
        assert sharded.dtype == whole.dtype
        assert_close(sharded, whole, rtol=2 * eps, atol=4 * eps)


@pytest.mark.parametrize("parts", [3], indirect=True)
@pytest.mark.parametrize("name", ring.RESHARDED)
def test_how_a_cloud_is_sharded_does_not_matter(parts, name):
    """All of it on one rank, on another, a bit everywhere; empty shards among them."""
    for sharded, whole in both(parts, name, ring.RESHARDED[name]):
        assert_close(sharded, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ring.fields())
def test_fields_and_densities_are_those_of_the_union(parts, name):
    wholes = ring.field_and_gradients(ring.fields()[name], ring.field_clouds())
    axes = [-1 if w.dim() == 1 else -2 for w in wholes]
    for sharded, whole in zip(joined(parts, name, axes), wholes, strict=True):
        assert_close(sharded, whole, rtol=1e-11, atol=1e-12)


def test_the_ring_is_a_backend_a_function_and_a_group(parts):
    x, y, *_ = ring.field_clouds()
    whole = wg.kernel_average(x, y, kernel=wg.Gaussian(0.8))
    for name in ("named", "function"):
        for sharded, expected in zip(joined(parts, name, (-1, -2)), whole, strict=True):
            assert_close(sharded, expected, rtol=1e-12, atol=1e-12)
    n, m = (sizes[len(parts)][0] for sizes in (ring.SIZES_X, ring.SIZES))
    for alone, expected in zip(
        parts[0]["alone"], wg.kernel_average(x[:n], y[:m], kernel=wg.Gaussian(0.8)), strict=True
    ):
        assert_close(alone, expected)
    assert "not in `group`" in parts[1]["outside"]


def test_the_ring_keeps_memory_linear(parts):
    """No process makes a tensor of all its pairs with one shard, 2.25 million here, forward or backward."""
    assert all(part["largest"] <= max(blocked.TILE_BYTES // 8, 4 * 1500) for part in parts)


DISAGREE = (
    "dimension",
    "dtype",
    "kernel",
    "lengths",
    "skip_self",
    "leading dimensions",
    "log_weights",
    "requires_grad",
)
REFUSED = {
    **{name: f"disagree on {'kernel' if name == 'lengths' else name}" for name in DISAGREE},
    "another call": "disagree on call",
    "NaN": "NaN",
    "one rank's shapes": "n, D",
    "one rank's lengths": "length_scale is",
    "all empty": "empty on every rank",
    "one point": "nothing of one point on all ranks",
    "all weights zero": "all weights of y are zero",
    "the ring in the ring": "the ring",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_on_one_rank_is_an_error_on_every_rank(parts, name):
    for part in parts:
        assert part["refusals"][name].startswith("ValueError: ")
        assert re.search(REFUSED[name], part["refusals"][name])


def test_the_second_derivative_of_the_ring_is_refused(parts):
    for part in parts:
        assert part["refusals"]["second derivative"].startswith("RuntimeError: create_graph")


def test_what_is_no_sum_over_samples_is_refused_on_shards(parts):
    for part in parts:
        for name, said in part["refusals"]["only whole"].items():
            assert re.match(r"ValueError: .* cannot be computed from shards", said), name


def test_the_ring_explains_itself(parts):
    for part in parts:
        for said in part["explained"]:
            assert said.startswith("distributed in float64")
            assert "dense" in said  # what sums its own shards


@pytest.mark.parametrize("call", [lambda x, k: wg.distributed.kernel_average(x, x, kernel=k),
                                  lambda x, k: wg.kernel_average(x, x, kernel=k, backend="distributed")])  # fmt: skip
def test_without_a_process_group_the_ring_says_how_to_make_one(call):
    with pytest.raises(RuntimeError, match="init_process_group"):
        call(torch.randn(4, 2), wg.Gaussian(1.0))


@pytest.mark.slow
def test_a_lost_process_is_an_error_within_the_timeout(tmp_path):
    """The last of three hangs in the first round of one ring, and dies in the second round of another."""
    *others, last = start("lost", 3, tmp_path, codes=(0, 0, 7))
    assert last == {}
    for done in others:
        for stage in ("hangs", "dies"):
            said, _ = done[stage]
            assert said.startswith("LostProcess: rank")


SCRIPT = """
import torch
import torch.distributed as dist
import wgflow as wg

dist.init_process_group("gloo")
samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
mine = samples.chunk(dist.get_world_size())[dist.get_rank()]
with wg.distributed.sharded():
    total = wg.KDE(mine, wg.Gaussian(0.4)).log_density(mine).sum()
dist.all_reduce(total)
if dist.get_rank() == 0:
    print(f"{total / len(samples):.4f}")
dist.destroy_process_group()
"""


def test_a_density_on_two_processes_of_torchrun_is_that_of_one(tmp_path):
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script)],
        capture_output=True, text=True, env=env, cwd=tmp_path, check=True,
    )  # fmt: skip
    samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    whole = wg.KDE(samples, wg.Gaussian(0.4)).log_density(samples).mean()
    assert done.stdout.strip() == f"{whole:.4f}"
