"""What the README shows runs, and the files it points to exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LINKS = sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README)))


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("link", LINKS)
def test_the_links_lead_somewhere(link):
    assert (ROOT / link).exists()
