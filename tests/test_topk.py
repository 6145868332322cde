"""The page on the top-K term shows what its script computes from the committed rows."""

import pytest

from tests.conftest import ROOT


@pytest.fixture
def script(benchmark_scripts):
    import topk

    return topk


def test_the_page_shows_the_output_of_its_script(script):
    page = (ROOT / "docs" / "topk.md").read_text(encoding="utf-8")
    for title, section in script.SECTIONS.items():
        assert f"## {title}\n" in page
        assert section() in page


def test_pairs_are_equal_until_the_term_begins(script):
    """The reason for pairing: with and without the term, a seed has the same evaluations offline."""
    for pair in script.PAIRS:
        curves = script.evaluations(pair.file)
        last = {"methods-pointmaze": 4000, "pusht-online": 3000}.get(pair.file, 8000)
        for seed, rows in curves[pair.with_term].items():
            for row, other in zip(rows, curves[pair.without][seed], strict=True):
                # One evaluation of equal weights was rounded in two ways (docs/topk.md, "Rounding").
                if row["step"] < last or (row["step"] == last and pair.file != "arm-topk-sampled"):
                    assert row[pair.measure] == other[pair.measure]


def test_the_interval_of_three_differences(script):
    """Of -1, 0, 1 the mean is 0 and the standard error 1 / sqrt(3); Student's t with 2 degrees has .975 at 4.3027."""
    import pandas as pd

    from wgflow_rl.experiments.results import summary

    found = summary(pd.Series([-1.0, 0.0, 1.0]))
    low, high = script.t_interval(found)
    assert (low, high) == pytest.approx((-4.30265 / 3**0.5, 4.30265 / 3**0.5), rel=1e-5)
    assert script.answer(found) == "cannot be told apart"
    assert script.answer(summary(pd.Series([1.0, 1.1, 1.2]))) == "higher"
    assert script.answer(summary(pd.Series([-1.0, -1.1, -1.2]))) == "lower"
