"""The pages of theory name functions and tests; both have to exist."""

import re
from pathlib import Path

import wgflow

ROOT = Path(__file__).resolve().parent.parent
KNOWN_WORDS = {"wgflow_rl.agents"}  # names that are no part of the library
PAGE = "\n".join(
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("theory", "proper")
)


def test_every_test_named_on_the_pages_of_theory_exists():
    written = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in written} == set()


def test_every_cell_of_the_table_of_fields_has_evidence_or_a_question_mark():
    section = PAGE.split("## The family in one table")[1].split("### The Sinkhorn field")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    evidence = {row[0]: row[1] for row in rows if len(row) == 2 and row[0].isdigit()}
    fields = [row for row in rows[1:] if len(row) == 8]
    assert len(fields) > 10
    cited = set()
    for field in fields:
        for cell in field[1:-1]:
            numbers = re.findall(r"\d+", " ".join(re.findall(r"\[([\d, ]+)\]", cell)))
            assert numbers or any(mark in cell for mark in "?:—"), (
                f"{field[0]}: {cell!r} has no evidence"
            )
            cited |= set(numbers)
    assert cited == set(evidence)
    for number, text in evidence.items():
        assert "`test_" in text or "∎" in text or re.search(r"(19|20)\d\d", text), number


def test_every_name_in_the_tables_is_public():
    """What stands in backticks in a column of functions is importable: bare names, and names of public modules."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") >= 4]
    named = {
        name
        for row in rows
        for name in re.findall(r"`([A-Za-z]\w*(?:\.\w+)?)`", row)
        if not name.startswith("test_")
    }
    assert len(named) > 30
    import wgflow.bounds
    import wgflow.testing.gaussians

    for name in named - KNOWN_WORDS:
        thing = wgflow
        for part in name.split("."):
            thing = getattr(thing, part, None) or getattr(wgflow.testing.gaussians, part, None)
            assert thing is not None, f"`{name}` of the pages of theory is nothing public"


def test_every_call_named_on_the_pages_of_theory_is_public():
    called = set(re.findall(r"`(\w+)\(", PAGE))
    assert {name for name in called if name not in wgflow.__all__} == set()
