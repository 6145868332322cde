"""The theory page names functions and tests; both have to exist."""

import re
from pathlib import Path

import wgflow

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")


def test_every_test_named_on_the_theory_page_exists():
    written = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in written} == set()


def test_every_call_named_on_the_theory_page_is_public():
    called = set(re.findall(r"`(\w+)\(", PAGE))
    assert {name for name in called if name not in wgflow.__all__} == set()
