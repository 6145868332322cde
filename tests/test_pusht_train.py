"""Training on PushT from the command line: curve, film, resume, and what is said without data."""

import json

import numpy as np
import pytest

from wgflow_rl import train
from wgflow_rl.training.csv_table import read_rows

SMALL = (
    *("--env", "pusht", "--trunk", "16", "16", "--hidden", "16", "16", "--batch", "16"),
    *("--threads", "1", "--eval-episodes", "2", "--log-every", "50"),
)


@pytest.fixture
def demonstrations(official_data):
    folder = official_data / "pusht"
    if not folder.is_dir():
        pytest.skip(f"no PushT demonstrations in {folder}")
    return folder


def test_two_hundred_updates_from_the_official_data_to_curve_score_and_film(
    demonstrations, tmp_path
):
    run = tmp_path / "run"
    steps = ("--offline-steps", "200", "--eval-every", "100", "--checkpoint-every", "100")
    train.main([*SMALL, *steps, "--film", "--data", str(demonstrations), "--run-dir", str(run)])
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["method"] == "drift-bc" and settings["schedule"]["online_steps"] == 0
    assert settings["agent"]["history"] == 2 and settings["agent"]["horizon"] == 16
    _, rows = read_rows(run / "eval.csv")
    assert [int(row["step"]) for row in rows] == [100, 200]
    assert all(0 <= float(row["score"]) <= 1 for row in rows)
    assert all(float(r["score_low"]) <= float(r["score"]) <= float(r["score_high"]) for r in rows)
    _, logged = read_rows(run / "train.csv")
    assert np.isfinite([float(row["energy_score"]) for row in logged]).all()
    assert (run / "curve.png").stat().st_size > 1000
    assert (run / "film.mp4").stat().st_size > 1000


def test_an_online_phase_follows_the_demonstrations(demonstrations, tmp_path):
    """DFP with the coverage reward: its critic reads the executed part of the predicted chunk."""
    run = tmp_path / "run"
    steps = ("--offline-steps", "20", "--online-steps", "30", "--eval-every", "50")
    train.main(
        [
            *(*SMALL, *steps, "--method", "dfp-energy", "--data-episodes", "20", "--mirror"),
            *("--data", str(demonstrations), "--run-dir", str(run)),
        ]
    )
    _, rows = read_rows(run / "eval.csv")
    assert rows[-1]["phase"] == "online"
    assert -300 <= float(rows[-1]["return"]) <= 0


def test_without_data_the_places_to_get_them_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path / "empty"))
    with pytest.raises(SystemExit) as stopped:
        train.main([*SMALL, "--offline-steps", "1", "--run-dir", str(tmp_path / "run")])
    assert stopped.value.code
    message = capsys.readouterr().err
    assert "data download pusht" in message and "--data" in message
    assert "diffusion-policy.cs.columbia.edu" in message
    assert not (tmp_path / "run" / "config.json").exists()
