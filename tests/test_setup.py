"""The set-up names what a machine lacks, and is not fooled by a launcher with nothing behind it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BROKEN = "#!/bin/sh\necho 'command not found' >&2\nexit 127\n"
NO_VENV = f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n'
HAS_ALL = f'#!/bin/sh\necho "chosen: $0" >&2\ncase "$*" in *"-m venv"*) exit 1 ;; esac\nexec {sys.executable} "$@"\n'


@pytest.fixture
def machine(tmp_path):
    """A PATH of our own: `machine(name=script, ...)` puts the scripts there and runs the set-up with settings."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "dirname"):
        (folder / tool).symlink_to(
            next(p for p in ("/bin/" + tool, "/usr/bin/" + tool) if os.path.exists(p))
        )

    def run(*, extras="rl,dev", python="", **scripts):
        for name, text in scripts.items():
            path = folder / name.replace("gxx", "g++").replace("_", ".")
            path.write_text(text)
            path.chmod(0o755)
        settings = {
            "PATH": str(folder),
            "VENV": str(tmp_path / "venv"),
            "EXTRAS": extras,
            "PYTHON": python,
        }
        return subprocess.run(
            ["sh", str(ROOT / ".ci" / "setup")],
            env=settings,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def assert_stopped(done, *words):
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr


def test_no_python_is_named_with_its_package(machine):
    assert_stopped(machine(), "no working Python 3.11 or 3.12", "apt install python3 python3-venv")


def test_a_launcher_that_fails_is_no_python(machine):
    assert_stopped(machine(python3_11=BROKEN, python3=BROKEN), "no working Python 3.11 or 3.12")


def test_a_working_python_behind_a_broken_launcher_is_found(machine):
    done = machine(python3_11=BROKEN, python3_12=BROKEN, python3=HAS_ALL)
    assert_stopped(done, "/bin/python3\n", "could not make")


def test_a_chosen_python_that_does_not_work_is_said(machine):
    assert_stopped(
        machine(python="/nowhere/python3.11"), "PYTHON=/nowhere/python3.11 is no working Python"
    )


def test_a_missing_venv_module_is_named_with_its_package(machine):
    major, minor = sys.version_info[:2]
    assert_stopped(
        machine(python3=NO_VENV), "has no venv module", f"apt install python{major}.{minor}-venv"
    )


def test_missing_compilers_stop_only_the_parts_that_compile(machine):
    assert_stopped(machine(extras="rl,keops"), "need: g++ cmake", "apt install g++ cmake")
    done = machine(extras="rl", python3=NO_VENV)
    assert "note: not found: g++ cmake" in done.stdout
    assert "venv" in done.stderr  # it went on to the next step


def test_the_workflow_runs_what_continuous_integration_runs():
    yaml = pytest.importorskip("yaml")
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))[
        "jobs"
    ].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        c.rpartition(" ")[2]
        for c in project["classifiers"]
        if re.fullmatch(r".*Python :: 3\.\d+", c)
    }
    assert set(job["strategy"]["matrix"]["python"]) == named


def test_the_hooks_of_a_commit_are_those_of_make_lint():
    yaml = pytest.importorskip("yaml")
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))[
        "repos"
    ]
    assert (
        repository["repo"] == "local"
    )  # nothing is fetched; versions are those of constraints.txt
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)[1]
    lint = (
        lint.replace("$(RUN)", ".venv/bin/python")
        .replace("$(VENV)", ".venv")
        .replace(" --check .", "")
    )
    hooks = [hook["entry"].replace(" --force-exclude", "") for hook in repository["hooks"]]
    assert hooks == [line.strip().removesuffix(" .") for line in lint.splitlines()]
