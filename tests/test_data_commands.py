"""`python -m wgflow_rl.data`: what it prints of files, and one line with exit code 2 for what cannot be done."""

import urllib.error
import urllib.request

import numpy as np
import pytest

from wgflow_rl.data.__main__ import main

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


@pytest.fixture
def file(tmp_path):
    """Two trajectories of 10 rows, and one for validation, near the centre of the first free cell."""
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    for name, lengths in ((path, [10, 10]), (path.with_name(f"{path.stem}-val.npz"), [10])):
        rows = sum(lengths)
        position = np.random.default_rng(0).uniform(-1, 1, (rows, 2)).astype(np.float32)
        ends = np.isin(np.arange(rows), np.cumsum(lengths) - 1)
        arrays = {"observations": position, "actions": position, "qpos": position, "terminals": ends}
        np.savez(name, **arrays)
    return path


def change(path, **changes):
    np.savez(path, **(dict(np.load(path, allow_pickle=False)) | changes))


def refusal(capsys, *args):
    """The one line on stderr with which a command ends."""
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_check_names_both_files(file, capsys):
    main(["check", MAZE, "--folder", str(file.parent)])
    out = capsys.readouterr().out
    assert f"{file}\n" in out and f"{file.stem}-val.npz\n" in out
    assert "18 transitions in 2 trajectories" in out and "9 transitions in 1 trajectories" in out


def test_info_tells_what_the_data_know_of_each_task(file, capsys):
    main(["info", MAZE, "--folder", str(file.parent)])
    out = capsys.readouterr().out
    assert "observations 2, actions 2" in out
    for task in (1, 2, 3, 4):
        assert f"task {task}: 0 rows at the goal, in 0 of 2 trajectories; returns -9 to -9, mean -9.0" in out
    kept = np.delete(np.load(file, allow_pickle=False)["qpos"], [9, 19], axis=0)
    reached = int((np.linalg.norm(kept, axis=1) <= 1).sum())  # task 5 ends in the cell the file is in
    assert reached and f"task 5: {reached} rows at the goal, in 2 of 2 trajectories" in out
    assert f"actions {kept[:, 0].min():.2f} to {kept[:, 0].max():.2f}, " in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.full((20, 2), np.nan, np.float32)}, "actions is not finite in row 0 (20 such rows)"),
        ({"terminals": np.zeros((20, 1), bool)}, "terminals is (20, 1); wanted one axis"),
        ({"version": np.array(3)}, "different lengths"),
    ],
)
def test_check_ends_with_the_first_thing_that_is_wrong(file, capsys, changes, message):
    change(file, **changes)
    err = refusal(capsys, "check", MAZE, "--folder", str(file.parent))
    assert str(file) in err and message in err


def test_commands_refuse_in_one_line(tmp_path, capsys, monkeypatch):
    for command in ("generate", "download", "check", "info"):
        assert "env is 'maze'" in refusal(capsys, command, "maze", "--folder", str(tmp_path))
    assert "found no .npz file" in refusal(capsys, "check", MAZE, "--folder", str(tmp_path))
    assert "rows is 0" in refusal(capsys, "generate", MAZE, "--rows", "0", "--folder", str(tmp_path))

    def unreachable(request, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    err = refusal(capsys, "download", MAZE, "--folder", str(tmp_path))
    assert "no route to host" in err and "python -m wgflow_rl.data generate" in err
    assert not list(tmp_path.iterdir())
