"""The documentation builds without a warning, its code runs, and the commands it shows exist."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
SNIPPETS = sorted((ROOT / "docs" / "snippets").glob("*.py"))
SHOWN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def alone(monkeypatch):
    """What torchrun tells a process; a page may start a group of one."""
    import torch.distributed as dist

    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "RANK": "0",
        "WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, alone, request):
    if any("wgflow_rl" in code for code in blocks(page)):
        pytest.importorskip("ogbench")
        request.getfixturevalue("own_registries")
    names: dict = {"__name__": page.stem}
    for i, code in enumerate(blocks(page)):
        exec(compile(code, f"{page.name}, block {i}", "exec"), names)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda path: path.stem)
def test_the_example_of_a_module_runs(snippet, alone, tmp_path, monkeypatch):
    if snippet.stem.endswith("plots"):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    code = snippet.read_text(encoding="utf-8")
    assert max(map(len, code.splitlines())) <= 100
    exec(compile(code, snippet.name, "exec"), {"__name__": snippet.stem})


def test_every_page_of_the_library_has_an_example():
    listed = re.findall(
        r"^   (wgflow\.[\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == [path.stem for path in SNIPPETS]


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"python -m (wgflow[\w.]*\w)", text)):
        assert importlib.util.find_spec(module), f"{page.name} shows python -m {module}"
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in set(re.findall(r"^wgflow-\w+", text, flags=re.MULTILINE)):
        assert f"\n{name} = " in scripts, f"{page.name} shows {name}"
    for script in set(re.findall(r"(?:examples|benchmarks)/\w+\.py", text)):
        assert (ROOT / script).exists(), f"{page.name} shows {script}"
    targets = set(
        re.findall(
            r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    )
    fenced = "\n".join(re.findall(r"```\n(.*?)```", text, flags=re.DOTALL))
    assert set(re.findall(r"^(?:\S+=\S+ )*make ([\w-]+)", fenced, flags=re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_the_files_a_page_links_to_exist(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def broken_links(site):
    """Links inside the site whose page, or whose place on it, does not exist: (page, link).

    Listings of the source are not asked: Sphinx links a name there to the package that hands it on.
    """
    places = {}
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        places[page] = (
            set(re.findall(r'\bid="([^"]+)"', text)),
            set(re.findall(r'<a [^>]*?href="([^"]+)"', text)),
        )
    for page, (_, links) in places.items():
        for link in links if "_modules" not in page.parts else ():
            if re.match(r"[a-z]+:|//", link):
                continue
            path, _, place = unquote(html.unescape(link)).partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (
                place and target in places and place not in places[target][0]
            ):
                yield str(page.relative_to(site)), link


def test_every_page_is_on_the_site():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([\w/]+)$", index, flags=re.MULTILINE)
    assert {page.stem for page in PAGES} - {"index"} <= set(listed)


def test_every_deviation_has_a_number_of_its_own():
    page = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    numbers = [int(n) for n in re.findall(r"^\| (\d+) \| ", page, flags=re.MULTILINE)]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """As `make docs`, the examples not run: tests/test_examples.py does that."""
    themes = ("furo", "sphinx_copybutton", "sphinx_design", "sphinx-mathjax-offline")
    for package in ("sphinx", "myst_parser", "sphinx_gallery", *themes):
        pytest.importorskip(package)
    flags = ["-W", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    flags += ["-D", "sphinx_gallery_conf.plot_gallery=0"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags, str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(broken_links(tmp_path / "site")) == []
    equations = (tmp_path / "site" / "theory.html").read_text(encoding="utf-8")
    assert 'src="_static/mathjax/tex-chtml.js"' in equations
    assert (tmp_path / "site" / "_static" / "mathjax" / "tex-chtml.js").exists()
    elsewhere = r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//'
    assert not re.search(elsewhere, equations)  # read without a network
    check_reference(tmp_path / "site" / "generated" / "api")


def check_reference(folder):
    """Every public name of wgflow is described, and every module of wgflow_rl has its page."""
    import wgflow

    text = "".join(page.read_text(encoding="utf-8") for page in folder.glob("wgflow.*.html"))
    public = [name for name in wgflow.__all__ if callable(getattr(wgflow, name))]
    assert [name for name in public if f'id="wgflow.{name}"' not in text] == []
    modules = (path.relative_to(ROOT) for path in (ROOT / "wgflow_rl").rglob("[!_]*.py"))
    names = [".".join(path.with_suffix("").parts) for path in modules]
    assert [name for name in names if not (folder / f"{name}.html").exists()] == []
