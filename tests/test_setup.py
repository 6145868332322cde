"""The set-up names what a machine lacks, and is not fooled by a launcher with nothing behind it."""

import os
import subprocess
import sys
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
    assert_stopped(machine(), "no working Python 3.10 to 3.14", "apt install python3 python3-venv")


def test_a_launcher_that_fails_is_no_python(machine):
    assert_stopped(machine(python3_11=BROKEN, python3=BROKEN), "no working Python 3.10 to 3.14")


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
