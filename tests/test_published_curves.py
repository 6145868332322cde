"""Curves of other code bases are read as they were written, and stand beside runs of the same environment."""

import gzip
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_report import MAZE, TRIPLE, section, write_run
from wgflow_rl import report
from wgflow_rl.experiments import peers, published_curves
from wgflow_rl.experiments.peers import read_curves
from wgflow_rl.experiments.results import OFFICIAL, RunGroup, paired

ENVS = (TRIPLE, MAZE, "lift-mh-low_dim", "cube-double-play")
OFFICIAL_FLAGS = ("--data", "/official/cube-triple-play-v0")


@st.composite
def tables(draw):
    """A table of published curves in one of the two forms, rows in any order."""
    interval = draw(st.booleans())
    keys = st.tuples(
        st.sampled_from(ENVS),
        st.text("abcXYZ-_ ", min_size=1, max_size=6).filter(str.strip).map(str.strip),
        st.integers(0, 10**7),
        st.just(0) if interval else st.integers(0, 20),
    )
    rows = []
    for env, method, step, seed in draw(st.lists(keys, min_size=1, max_size=30, unique=True)):
        low, success, high = sorted(draw(st.tuples(*[st.floats(0, 1)] * 3)))
        rows.append(
            (env, method, step, success, low, high)
            if interval
            else (env, method, step, seed, success)
        )
    names = [
        "env",
        "method",
        "step",
        *(("success", "low", "high") if interval else ("seed", "success")),
    ]
    return pd.DataFrame(rows, columns=names)


def write(table, folder, name="theirs.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / name, index=False)
    return folder / name


def joined(groups):
    """The rows of groups as one table, sorted."""
    parts = [group.evaluations.assign(env=group.env, method=group.method) for group in groups]
    rows = pd.concat(parts, ignore_index=True)
    return rows.sort_values(["env", "method", "seed", "step"], ignore_index=True)


@given(tables(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_whatever_the_order_and_compression(
    tmp_path_factory, table, random
):
    folder = tmp_path_factory.mktemp("curves")
    wanted = table.assign(seed=table.get("seed", 0))
    wanted = wanted.sort_values(["env", "method", "seed", "step"], ignore_index=True)
    order, columns = (
        random.sample(range(len(table)), len(table)),
        random.sample(list(table), table.shape[1]),
    )
    write(table, folder / "a")
    write(table.iloc[order][columns], folder / "b", "theirs.csv.gz")
    plain, packed = (
        read_curves(folder / "a" / "theirs.csv"),
        read_curves(folder / "b" / "theirs.csv.gz"),
    )
    pd.testing.assert_frame_equal(joined(plain)[wanted.columns], wanted)
    pd.testing.assert_frame_equal(joined(packed), joined(plain))
    assert {(each.source, each.data, each.peer) for each in packed} == {("theirs", OFFICIAL, True)}


def curve(values, source="theirs", env=TRIPLE, method="X", offline=1_000_000, last=2_000_000):
    """A published curve with these values at its last step, one per seed, and 0 at the end of its offline phase."""
    rows = [
        (seed, step, v) for seed, v in enumerate(values) for step, v in ((offline, 0.0), (last, v))
    ]
    table = pd.DataFrame(rows, columns=["seed", "step", "success"])
    return RunGroup(method, env, table, offline, peer=True, source=source, data=OFFICIAL)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_the_interval_of_two_seeds_is_their_range(a, b):
    """Of resamples of {a, b} a quarter have the mean a and a quarter b: 2.5 % quantiles are the two values."""
    found = curve([a, b]).summary("online")
    assert found.mean == pytest.approx(50 * (a + b))
    assert found.interval == pytest.approx((100 * min(a, b), 100 * max(a, b)))


def test_a_published_interval_is_passed_on_as_it_is(tmp_path):
    table = pd.DataFrame(
        {"step": [100, 200], "success": [0.25, 0.5], "low": [0.125, 0.375], "high": [0.75, 1.0]}
    )
    (found,) = read_curves(write(table.assign(env=MAZE, method="X"), tmp_path), 100)
    for phase, mean, interval in (("offline", 25, (12.5, 75)), ("online", 50, (37.5, 100))):
        summary = found.summary(phase)
        assert (summary.mean, summary.interval, summary.seeds) == (mean, interval, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env,method,success\n", "line 1, has no column step"),
        ("env,method,step,success\n", "line 1, has no column seed"),
        ("env,method,step,success,low\n", "line 1, has no column high"),
        ("env,method,mean,std\n", "line 1, has no column step"),
        ("env,method,step,seed,success,success\n", "line 1, has two columns success"),
        ("env,method,step,seed,success\n", "has a header and no rows"),
        (f"env,method,step,seed,success\n\n{MAZE},X,1,0,97\n", "line 3, column success: '97'; wanted a fraction"),
        (f"env,method,step,seed,success\n{MAZE},X,1,0\n", "line 2, column success: ''; wanted a fraction"),
        (f"env,method,step,seed,success\n{MAZE},X,1,0,nan\n", "line 2, column success: 'nan'; wanted a fraction"),
        (f"env,method,step,seed,success\n{MAZE},X,-1,0,.5\n", "line 2, column step: '-1'; wanted a whole number"),
        (f"env,method,step,seed,success\n{MAZE},X,1,.5,.5\n", "line 2, column seed: '.5'; wanted a whole number"),
        (f"env,method,step,seed,success\n{MAZE},,1,0,.5\n", "line 2, column method: ''; wanted a name"),
        (
            "env,method,step,seed,success\ncube-double-play-task1,X,1,0,.5\ncube-dobule-play-task1,X,1,0,.5\nx,X,1,0,.5\n",
            "line 3, column env: 'cube-dobule-play-task1'; wanted an environment: env is",
        ),
        (
            f"env,method,step,seed,success\n{MAZE},X,1,0,.5\n{MAZE},X,1,0,.6\n",
            "line 3, column step: '1'; wanted one success per seed and step of a curve",
        ),
        (
            f"env,method,step,success,low,high\n{MAZE},X,1,.5,.6,.7\n",
            "line 2, column low: '.6'; wanted at most success",
        ),
        (
            f"env,method,step,success,low,high\n{MAZE},X,1,.5,.4,.4\n",
            "line 2, column high: '.4'; wanted at least success",
        ),
    ],
)  # fmt: skip
def test_a_malformed_table_is_refused_with_line_and_column(text, message, tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_curves(path)
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_damaged_or_too_large_when_unpacked_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "theirs.csv.gz"
    whole = gzip.compress(b"env,method,step,seed,success\n" + b"\n" * 10**6)
    for damaged in (b"env,method\n", whole[:-20], whole[:40] + b"?" + whole[41:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"theirs\.csv\.gz is no whole gzip file"):
            read_curves(path)
    monkeypatch.setattr(peers, "LARGEST", 10**5)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"more than 100,000 bytes when it is unpacked"):
        read_curves(path)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("cube-double-play-task2", "cube-double-play-singletask-task2-v0"),
        ("cube-double-play-singletask-task2-v0", "cube-double-play-singletask-task2-v0"),
        ("antmaze-large-navigate-task5", "antmaze-large-navigate-singletask-task5-v0"),
        ("square", "square-mh-low_dim"),
        ("scene-play", "scene-play"),
    ],
)
def test_names_of_environments_are_translated(theirs, ours):
    assert peers.environment(theirs) == ours


def test_comparable_are_equal_data_and_equal_steps(tmp_path):
    def verdict(*flags, **changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_run(folder, "dfp", TRIPLE, 0, [0.1, 0.9], *flags)
        (found,) = report.reading.read([folder])
        return published_curves.differences(found, curve([0.5], **changes))

    assert verdict(*OFFICIAL_FLAGS) == ""
    assert verdict() == "generated data against official data"
    ours = "/cache/cube-triple-play-v0-rows1000-seed0-v2"  # as `data.generated` names its folders
    assert verdict("--data", ours).startswith("generated data cube-triple-play-v0-rows1000")
    assert verdict(*OFFICIAL_FLAGS, last=1_500_000) == "1M + 1M steps against 1M + 500k steps"
    assert verdict(*OFFICIAL_FLAGS, offline=None, last=2_000_000) == ""


def test_the_demonstrations_of_pusht_are_official(tmp_path):
    write_run(tmp_path, "drift-bc", "pusht", 0, [0.5])
    (found,) = report.reading.read([tmp_path])
    assert found.data == OFFICIAL and OFFICIAL in found.conditions


def test_curves_share_axes_with_comparable_runs_alone(tmp_path, monkeypatch):
    """Official data and the same steps: one panel. Each other set of conditions has its own, as has the other curve."""
    drawn = []
    monkeypatch.setattr(published_curves, "draw", lambda panels, *_, **__: drawn.append(panels))
    write_run(tmp_path, "dfp", TRIPLE, 0, [0.1, 0.9], *OFFICIAL_FLAGS)
    write_run(tmp_path, "mvp", TRIPLE, 0, [0.1, 0.9])
    published = [curve([0.5], "same"), curve([0.5], "shorter", last=1_500_000)]
    published_curves.section([*report.reading.read([tmp_path]), *published], (), tmp_path)
    ((first, second, third),) = [[list(lines) for lines in panels.values()] for panels in drawn]
    assert (first, second, third) == (["dfp", "X (same)"], ["mvp"], ["X (shorter)"])
    assert "ours 2, generated data: not comparable" in drawn[0]


@pytest.fixture
def beside(tmp_path):
    """Runs on generated data in one environment, and a table of curves in that and in another."""
    for seed in (0, 1):
        write_run(tmp_path / "runs", "dfp", TRIPLE, seed, [0.1, 0.5])
    steps = np.arange(500_000, 2_000_001, 500_000)
    rows = [
        (env, f"M{method}", step, seed, method / 10 * step / 2_000_000)
        for env in (TRIPLE, MAZE)
        for method in range(9)
        for step in steps
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns=["env", "method", "step", "seed", "success"])


def reported(folder, *flags):
    report.main(
        [str(folder / "runs"), str(folder / "theirs"), "--out", str(folder / "out"), *flags]
    )
    return section((folder / "out" / "report.md").read_text(), "## Published curves")


def test_published_curves_stand_beside_runs_of_their_environment(beside, tmp_path, capsys):
    write(beside, tmp_path / "theirs")
    text = reported(tmp_path, "--peer-offline-steps", "1000000")
    assert TRIPLE in text and MAZE not in text
    assert (
        "| M8 (theirs) | published in theirs.csv, official data | 1M + 1M steps | 40.0 ± 0.0"
        in text
    )
    assert "theirs: not comparable, generated data against official data" in text
    assert "Drawn: 6 of 9 published curves" in text
    assert (tmp_path / "out" / f"published-{TRIPLE}.png").read_bytes().startswith(b"\x89PNG")
    assert "Drawn: 2 of 9" in reported(tmp_path, "--methods", "M1", "M3 (theirs)")
    with pytest.raises(SystemExit):
        reported(tmp_path, "--methods", "M77")
    assert (
        "--methods has 'M77'; there are published curves of M0, M0 (theirs), M1"
        in capsys.readouterr().err
    )


def test_permuted_rows_give_the_same_tables(beside, tmp_path):
    found = []
    for seed in (None, 0, 1):
        rows = beside if seed is None else beside.sample(frac=1, random_state=seed)
        write(rows, tmp_path / "theirs")
        text = reported(tmp_path, "--no-figures")
        found.append((text, (tmp_path / "out" / "runs.csv").read_text()))
    assert found[0] == found[1] == found[2]


def test_published_curves_alone_make_a_report(beside, tmp_path):
    write(beside[beside["env"] == MAZE], tmp_path / "theirs")
    report.main([str(tmp_path / "theirs"), "--out", str(tmp_path / "out"), "--tables", "10"])
    text = section((tmp_path / "out" / "report.md").read_text(), "## Published curves")
    assert "Drawn: 6 of 9 published curves" in text
    assert (tmp_path / "out" / f"published-{MAZE}.png").exists()


def test_the_official_tables_are_read_whole(official_data):
    folder = official_data / "curves"
    if not folder.is_dir():
        pytest.skip(f"no published curves in {folder}")
    for name, rows, methods in (("qc", 7_044, 14), ("qam", 211_680, 17)):
        found = read_curves(folder / f"{name}.csv.gz", 1_000_000)
        assert sum(len(each.evaluations) for each in found) == rows
        assert len({each.method for each in found}) == methods
        assert all(each.summary("online") is not None for each in found)
        assert "cube-double-play-singletask-task2-v0" in {each.env for each in found}


# ---- paired differences ----------------------------------------------------------------------------------------------

seeds = st.dictionaries(st.integers(0, 9), st.floats(0, 1), min_size=2, max_size=6).map(pd.Series)


@given(seeds, seeds)
@settings(max_examples=30, deadline=None)
def test_a_paired_difference_is_over_common_seeds_and_changes_sign(a, b):
    there, back = paired(a, b), paired(b, a)
    common = sorted(set(a.index) & set(b.index))
    if not common:
        assert there is None and back is None
        return
    assert there.seeds == len(common)
    assert there.mean == pytest.approx(np.mean([a[seed] - b[seed] for seed in common]))
    assert back.mean == pytest.approx(-there.mean)


@given(seeds, st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_what_both_have_of_a_seed_cancels(a, gain):
    """a + c against a is c for every seed: no spread, however much the seeds differ."""
    found = paired(a + gain, a)
    assert found.interval == pytest.approx((gain, gain), abs=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_differences_are_printed_to_the_method_that_is_named(tmp_path, capsys):
    for seed, (base, gain) in enumerate([(0.1, 0.2), (0.5, 0.2), (0.7, 0.2)]):
        write_run(tmp_path / "runs", "dfp", TRIPLE, seed, [0.5, base + gain])
        write_run(tmp_path / "runs", "dfp-no-topk", TRIPLE, seed, [0.5, base])
    args = [str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-figures", "--versus"]
    report.main([*args, "dfp-no-topk"])
    found = section((tmp_path / "out" / "report.md").read_text(), "## Differences to dfp-no-topk")
    assert "| +0.0 ± 0.0 [+0.0, +0.0] (3) | +20.0 ± 0.0 [+20.0, +20.0] (3) |" in found
    with pytest.raises(SystemExit):
        report.main([*args, "mvp"])
    assert "--versus is 'mvp'; there are runs of dfp, dfp-no-topk" in capsys.readouterr().err


def test_a_method_without_a_run_to_compare_says_so(tmp_path):
    write_run(tmp_path / "runs", "dfp", TRIPLE, 0, [0.5])
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path), "--no-figures", "--versus", "dfp"])
    found = section((tmp_path / "report.md").read_text(), "## Differences to dfp")
    assert "No other method has runs" in found
    assert "|" not in found
