"""Runs whose data have moved, have changed, or never solve the task."""

import dataclasses
import json

import numpy as np
import pytest

from tests.runs import outcome, resume, start, stop_after, tiny_world, walks
from wgflow_rl import data


@pytest.fixture
def world(monkeypatch):
    tiny_world(monkeypatch.setattr)
    read = []

    def load(env, *, folder, **_):
        read.append(folder)
        episodes, _ = walks()
        if folder is not None and folder.endswith("other"):
            episodes = dataclasses.replace(episodes, rewards=episodes.rewards - 1)
        return episodes, episodes

    monkeypatch.setattr(data, "load", load)
    return read


def test_the_checksum_decides_whether_moved_data_are_those_of_the_run(world, tmp_path, monkeypatch):
    start(tmp_path / "whole", "--data", "/old")
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(SystemExit):
            start(tmp_path / "run", "--data", "/old")
    with pytest.raises(ValueError, match="name their new folder with --data"):
        resume(tmp_path / "run", "--data", "/other")
    resume(tmp_path / "run", "--data", "/new/place")
    assert world[-1] == "/new/place"
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["data"] == "/new/place"


def test_data_that_never_solve_the_task_are_warned_about(world, tmp_path, monkeypatch, capsys):
    start(tmp_path / "never")
    said = capsys.readouterr()
    assert (said.out + said.err).count("no transition of the data ends the task") == 1
    resume(tmp_path / "never")
    said = capsys.readouterr()
    assert "no transition" not in said.out + said.err

    def solving(*_, **__):
        episodes, _ = walks()
        masks = np.ones(len(episodes), np.float32)
        masks[3] = 0
        return (dataclasses.replace(episodes, masks=masks),) * 2

    monkeypatch.setattr(data, "load", solving)
    start(tmp_path / "once")
    said = capsys.readouterr()
    assert "no transition" not in said.out + said.err
