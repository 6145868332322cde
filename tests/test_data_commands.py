"""`python -m wgflow_rl.data`: what it prints of files, and one line with exit code 2 for what cannot be done."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.maze_files import MAZE, STEM, change, maze_file
from wgflow_rl import data, envs
from wgflow_rl.data import generated, npz, statistics
from wgflow_rl.data.__main__ import main


@pytest.fixture
def file(tmp_path):
    """Two trajectories of 10 rows, and one for validation, near the centre of the first free cell."""
    path = tmp_path / f"{STEM}.npz"
    maze_file(path, [10, 10])
    maze_file(path.with_name(f"{STEM}-val.npz"), [10])
    return path


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


@pytest.mark.parametrize("flag", ["--folder", "--data"])
def test_info_tells_what_the_data_know_of_each_task(flag, file, capsys):
    main(["info", MAZE, flag, str(file.parent)])
    out = capsys.readouterr().out
    assert "18 transitions in 2 trajectories of 9 to 9; observations 2, actions 2" in out
    for task in (1, 2, 3, 4):
        facts = out[out.index(f"task{task}") :]
        assert "0 rows at the goal, in 0 of 2 trajectories; returns -9 to -9, mean -9.0" in facts
    arrays = np.load(file, allow_pickle=False)
    kept, actions = (np.delete(arrays[name], [9, 19], axis=0) for name in ("qpos", "actions"))
    # task 5 ends in the cell the file is in
    reached = int((np.linalg.norm(kept, axis=1) <= 1).sum())
    assert reached
    assert f"{reached} rows at the goal, in 2 of 2 trajectories" in out[out.index("task5") :]
    assert f"actions {actions[:, 0].min():.2f} to {actions[:, 0].max():.2f}, " in out
    picture = file.with_suffix(".png")
    assert out.endswith(f"{picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_data_on_a_read_only_disk_is_written_here(file, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    main(["info", MAZE, "--data", str(file.parent)])
    assert [path.name for path in Path().iterdir()] == [file.with_suffix(".png").name]


def test_info_finds_the_data_and_reads_their_rows_once(file, capsys, monkeypatch):
    monkeypatch.setenv("WGFLOW_DATA", str(file.parent))
    monkeypatch.setattr("wgflow_rl.data.__main__.DOWNLOADS", file.parent / "nowhere")
    main(["info", MAZE, "--folder", str(file.parent)])
    told = capsys.readouterr().out
    read, seen = npz.read, []
    monkeypatch.setattr(npz, "read", lambda path, names: seen.extend(names) or read(path, names))
    main(["info", MAZE])
    assert capsys.readouterr().out == told
    assert seen.count("observations") == seen.count("actions") == 2  # training and validation
    monkeypatch.setenv("WGFLOW_DATA", str(file.parent / "nowhere"))
    assert "python -m wgflow_rl.data generate" in refusal(capsys, "info", MAZE)


def test_facts_of_shards_are_those_of_their_union(file, tmp_path, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        for end in ("", "-val"):
            (folder / f"{file.stem}-{number:03d}{end}.npz").write_bytes(
                file.with_name(f"{file.stem}{end}.npz").read_bytes()
            )
    env = MAZE.replace("task1", "task5")
    main(["info", env, "--folder", str(folder), "--picture", str(tmp_path / "a.png")])
    twice = capsys.readouterr().out
    main(["info", env, "--folder", str(file.parent)])
    once = capsys.readouterr().out.partition("task5")[2]
    assert "36 transitions in 4 trajectories of 9 to 9" in twice
    goal = lambda text: [int(w) for w in text[: text.index(" rows at")].split()[-1:]]
    assert goal(twice) == [2 * n for n in goal(once)]
    assert once.splitlines()[-2] in twice  # ranges of the actions
    assert (tmp_path / "a.png").exists()


def test_list_names_every_environments_data_and_the_files_that_are_there(file, capsys, monkeypatch):
    monkeypatch.setenv("WGFLOW_DATA", str(file.parent / "nowhere"))
    file.with_name(f"{file.stem}-other.npz").touch()  # of another data set, whose name begins alike
    main(["list", "--folder", str(file.parent)])
    out = capsys.readouterr().out
    for env in envs.names():
        assert f"\n{envs.parse(env).dataset}: " in f"\n{out}"
    assert (
        f"{file.stem}: {MAZE.replace('-task1', '')} and 5 more\n  {file.parent}: 2 files, 0 MB\n"
        in out
    )


def test_actions_that_rounding_puts_beyond_the_box_are_counted_in_its_last_bins():
    beyond = np.float32(1) + np.finfo(np.float32).eps
    rows = {
        "observations": np.zeros((4, 2), np.float32),
        "actions": np.array([[beyond, -beyond]] * 4, np.float32),
        "rewards": np.zeros(4, np.float32),
        "terminals": np.zeros(4, bool),
        "timeouts": np.arange(4) == 3,
    }
    counts = statistics.collect([data.from_rows(rows, "x")]).counts
    assert counts.sum(1).tolist() == [counts[0, -1], counts[1, 0]]
    assert (counts.sum(1) > 0).all()


def test_check_takes_one_file(file, capsys):
    file.with_name(f"{file.stem}-val.npz").unlink()
    main(["check", MAZE, "--folder", str(file)])
    assert "18 transitions" in capsys.readouterr().out


def test_check_compares_arrays_that_training_does_not_read(file, capsys):
    arrays = dict(np.load(file, allow_pickle=False)) | {"qvel": np.full((20, 2), 0.123)}
    np.savez(file, **arrays)
    content = bytearray(file.read_bytes())
    content[content.index(arrays["qvel"].tobytes())] ^= 1
    file.write_bytes(content)
    assert "Bad CRC-32 for file 'qvel.npy'" in refusal(
        capsys, "check", MAZE, "--folder", str(file.parent)
    )


def test_generated_shards_are_data_sets_of_successive_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generated, "LENGTH", 30)
    args = ["generate", MAZE, "--rows", "30", "--folder", str(tmp_path), "--workers", "1"]
    main([*args, "--shards", "2"])
    folder = tmp_path / "pointmaze-medium-navigate-v0-rows30-seed0-v1-shards2"
    assert f"{folder}\n" in capsys.readouterr().out
    names = [f"pointmaze-medium-navigate-v0-{n}.npz" for n in ("000", "000-val", "001", "001-val")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    alone = (
        tmp_path
        / "pointmaze-medium-navigate-v0-rows30-seed1-v1"
        / "pointmaze-medium-navigate-v0.npz"
    )
    assert (folder / names[2]).read_bytes() == alone.read_bytes()


def test_download_asks_a_mirror_for_what_is_not_there(file, tmp_path, capsys):
    mirror = f"file://{file.parent}"
    main(["download", MAZE, "--folder", str(tmp_path / "got"), "--mirror", mirror])
    assert "18 transitions" in capsys.readouterr().out
    for end in ("", "-val"):
        name = f"{file.stem}{end}.npz"
        assert (tmp_path / "got" / name).read_bytes() == (file.parent / name).read_bytes()
    file.unlink()
    main(["download", MAZE, "--folder", str(tmp_path / "got"), "--mirror", mirror])


def test_download_of_shards_asks_for_the_large_set(file, tmp_path, capsys):
    large = tmp_path / "mirror" / "pointmaze-medium-navigate-100m-v0"
    large.mkdir(parents=True)
    for number in range(2):
        for end in ("", "-val"):
            source = file.with_name(f"{file.stem}{end}.npz")
            (large / f"{file.stem}-{number:03d}{end}.npz").write_bytes(source.read_bytes())
    args = [
        "download",
        MAZE,
        "--folder",
        str(tmp_path / "got"),
        "--mirror",
        f"file://{tmp_path}/mirror",
    ]
    main([*args, "--shards", "2"])
    got = tmp_path / "got" / large.name
    assert sorted(p.name for p in got.iterdir()) == sorted(p.name for p in large.iterdir())
    assert capsys.readouterr().out.count("transitions") == 4
    assert "-002.npz" in refusal(capsys, *args, "--shards", "3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": np.full((20, 2), np.nan, np.float32)},
            "actions is not finite in row 0 (20 such rows)",
        ),
        ({"terminals": np.zeros((20, 1), bool)}, "terminals is (20, 1); wanted one entry per row"),
        ({"version": np.array(3)}, "different lengths"),
    ],
)
def test_check_ends_with_the_first_thing_that_is_wrong(file, capsys, changes, message):
    change(file, **changes)
    err = refusal(capsys, "check", MAZE, "--folder", str(file.parent))
    assert str(file) in err and message in err


def test_commands_refuse_in_one_line(tmp_path, capsys):
    for command in ("generate", "download", "check", "info"):
        assert "env is 'maze'" in refusal(capsys, command, "maze", "--folder", str(tmp_path))
    assert "found no .npz file" in refusal(capsys, "check", MAZE, "--folder", str(tmp_path))
    assert "rows is 0" in refusal(
        capsys, "generate", MAZE, "--rows", "0", "--folder", str(tmp_path)
    )
    for command in ("generate", "download"):
        for env in ("lift-mh-low_dim", "pusht"):
            err = refusal(capsys, command, env, "--shards", "2", "--folder", str(tmp_path))
            assert "--shards is 2, but only data of OGBench's environments can be" in err
    assert not list(tmp_path.iterdir())
