"""The page on the published numbers shows what its script computes."""

import pytest

from tests.conftest import ROOT


@pytest.fixture
def script(benchmark_scripts):
    import paper_numbers

    return paper_numbers


def test_the_page_shows_the_output_of_its_script(script):
    page = (ROOT / "docs" / "paper_numbers.md").read_text(encoding="utf-8")
    for title, section in script.SECTIONS.items():
        assert f"## {title}\n" in page
        assert section() in page


def test_possible_pairs_are_those_of_an_exhaustive_search(script):
    """Five evaluations of four episodes: every pair that occurs is possible, and no other."""
    import itertools
    import statistics

    rates = itertools.combinations_with_replacement(range(0, 101, 25), 5)
    occurring = {(statistics.fmean(five), round(statistics.stdev(five), 1)) for five in rates}
    for mean in {mean for mean, _ in occurring}:
        stds = {std for m, std in occurring if m == mean}
        for tenth in range(0, 560, 7):
            near = any(abs(std - tenth / 10) <= 0.1 for std in stds)
            if script.possible(mean, tenth / 10, episodes=4, ddof=1):
                assert near
        assert all(script.possible(mean, std, episodes=4, ddof=1) for std in stds)
