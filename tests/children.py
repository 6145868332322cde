"""Python in a process of its own."""

import os
import subprocess
import sys


def python(*args, cwd=None, **env):
    """Run `python ARGS` with more variables in its environment; the result holds the text of both streams."""
    command, env = [sys.executable, *map(str, args)], os.environ | env
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
