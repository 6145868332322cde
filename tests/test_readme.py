"""What the README shows runs, and the files it points to exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LINKS = sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README)))


def test_the_code_blocks_run(tmp_path, monkeypatch):
    pytest.importorskip("ogbench")
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path))
    names: dict = {}
    for code in BLOCKS:
        exec(compile(code, "README.md", "exec"), names)
    assert names["actions"].shape == (128, 5, 2)


@pytest.mark.parametrize("link", LINKS)
def test_the_links_lead_somewhere(link):
    assert (ROOT / link).exists()
