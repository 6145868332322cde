"""A run that is killed at any moment, any number of times, ends as the run that never was."""

import ctypes
import errno
import multiprocessing
import random
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.disk import Disk, put
from tests.runs import FLAGS, outcome, start_or_resume, tiny_world
from tests.walk import WalkHome
from wgflow_rl import envs
from wgflow_rl.training import loop
from wgflow_rl.training.settings import from_command_line


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny_world(monkeypatch.setattr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to, and what its folder went through."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch, Disk(folder) as disk:
        tiny_world(patch.setattr)
        start_or_resume(folder)
    return outcome(folder), disk


def test_a_run_has_rows_that_grow_a_best_checkpoint_and_several_episodes(whole):
    (tables, step, state, _, rows), disk = whole
    assert [len(rows) for _, rows in tables] == [3, 3]
    assert step == 12
    assert state["collector"]["episode"] > 1
    assert len(rows["ring.rewards"]) == 7
    kept = sorted(int(path.stem[5:]) for path in (disk.folder / "checkpoints").glob("step-*"))
    # of the evaluations at 4, 8 and 12 the first two are the best, and the second is kept
    assert kept == [8, 9, 12]
    assert len(disk.killed) == len(disk.unplugged) > 100


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_a_run_stopped_at_any_change_of_its_folder_ends_as_the_one_that_was_not(
    how, whole, tmp_path
):
    expected, disk = whole
    states = {tuple(tree.items()): tree for tree in getattr(disk, how)}
    assert len(states) > 20
    for at, tree in enumerate(states.values()):
        put(tree, tmp_path / str(at))
        start_or_resume(tmp_path / str(at))
        assert outcome(tmp_path / str(at)) == expected, f"from {list(tree)}"


def child(folder, ready):
    """Go on in a process of its own that says when it begins."""
    torch.set_num_threads(1)
    tiny_world(setattr)
    from torch.utils import tensorboard  # noqa: F401  (not part of the time)

    ready.send(None)
    start_or_resume(folder)
    ready.send(None)


@pytest.mark.slow
def test_a_run_killed_twenty_times_at_random_moments_ends_as_the_one_that_was_not(whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wgflow_rl.train", "ogbench", "torch.utils.tensorboard"])
    number, seconds, kills, folder = random.Random(0), None, 0, tmp_path / "0"
    while kills < 20:
        here, there = context.Pipe()
        process = context.Process(target=child, args=(folder, there))
        process.start()
        there.close()  # or a child that fails would be waited for
        here.recv()
        began = time.monotonic()
        finished = here.poll(None if seconds is None else number.uniform(0, seconds))
        # of the first run, which is whole
        seconds = time.monotonic() - began if seconds is None else seconds
        process.kill()
        process.join()
        if finished:
            assert outcome(folder) == whole[0]
            folder = tmp_path / str(kills)
        kills += not finished
    if folder.exists():
        start_or_resume(folder)
        assert outcome(folder) == whole[0]


def test_a_disk_that_is_full_at_any_file_ends_the_run_with_its_name_and_the_run_goes_on(
    whole, tmp_path, monkeypatch
):
    write = Path.write_bytes
    for at in (0, 4, 9, 14):
        folder, files = tmp_path / str(at), []

        def full(path, contents):
            files.append(path)  # noqa: B023
            if len(files) > at:  # noqa: B023
                write(path, contents[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, contents)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(OSError, match="No space left"):
                start_or_resume(folder)
        assert not list(folder.rglob(".*.tmp"))
        start_or_resume(folder)
        assert outcome(folder) == whole[0]


def test_a_run_outside_the_main_thread_is_the_same(whole, tmp_path):
    thread = threading.Thread(target=start_or_resume, args=[tmp_path / "run"])
    thread.start()
    thread.join()
    assert outcome(tmp_path / "run") == whole[0]


class Stuck(WalkHome):
    """Its ninth step never answers, inside C and without Python's lock being held."""

    steps = 0

    def step(self, action):
        Stuck.steps += 1
        if Stuck.steps == 9:
            ctypes.CDLL(None).sleep(600)
        return super().step(action)


def stuck_child(folder):
    torch.set_num_threads(1)
    tiny_world(setattr)
    envs.make = lambda *_, **__: Stuck()
    sys.stderr = (folder.parent / "stderr").open("w")
    loop.run(
        from_command_line([*FLAGS.split(), "--run-dir", str(folder), "--env-timeout", "1"]),
        progress=False,
    )


def test_an_environment_that_hangs_ends_the_run_with_its_place_and_the_run_goes_on(whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=stuck_child, args=[tmp_path / "run"])
    process.start()
    process.join()
    assert process.exitcode == 2
    # The few rows of these data reach no goal, of which training warns first.
    _, line, said = (tmp_path / "stderr").read_text().partition("error: ")
    said = line + said
    assert re.match(
        r"error: the environment did not answer for 1 s \(--env-timeout\) in step \d of episode \d+ of pointmaze.*, "
        r"reset\(seed=\d+\), action \[.*\]\. .* with --resume\. Stacks of all threads:\n$",
        said,
    )
    start_or_resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == whole[0]
