"""What is published: a wheel with both packages and their types, and a source archive that its tests can run from."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def sources(package):
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_holds_both_packages_with_their_types_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == sources("wgflow") | sources("wgflow_rl")
    assert {"wgflow/py.typed", "wgflow_rl/py.typed"} <= names


@pytest.mark.slow
def test_the_source_archive_holds_what_its_tests_read(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = sources("tests") | sources("examples") | sources("wgflow") | sources("benchmarks")
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in wanted if not name.endswith(".pyc")} <= names
    for name in (
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "constraints.txt",
        "Makefile",
        ".ci/run",
    ):
        assert name in names
    assert not [
        name for name in names if name.startswith(("docs/_build", "docs/gallery", "docs/generated"))
    ]


def test_every_extra_is_in_all_and_has_a_line_in_the_documentation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    (everything,) = project["optional-dependencies"]["all"]
    assert set(everything.removeprefix("wgflow[").rstrip("]").split(",")) == extras - {"all"}
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    assert [extra for extra in extras - {"all"} if f"| `{extra}` |" not in page] == []


def test_the_citation_names_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
