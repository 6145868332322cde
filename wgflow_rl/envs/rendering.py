"""The renderer that MUJOCO_GL selects, which the simulators load when they are imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from wgflow_rl.utils.cli import UserError

WITHOUT_DISPLAY = (
    "Without a display, set MUJOCO_GL=egl or MUJOCO_GL=osmesa before the command; it needs that library (Debian: "
    "libegl1 or libosmesa6)."
)


@contextlib.contextmanager
def importing_simulators() -> Iterator[None]:
    """Convert failures of the renderer, while simulators are imported, to an error that names MUJOCO_GL.

    Raises:
        UserError: If the variable holds an unknown value, or the library of a known one is missing.
    """
    try:
        yield
    except ModuleNotFoundError:  # a missing package, which the caller names
        raise
    except Exception as error:  # each GL platform raises its own types
        if not (value := os.environ.get("MUJOCO_GL")):
            raise
        raise UserError(
            f"MUJOCO_GL is {value!r}, which cannot be used here ({type(error).__name__}: {error}). Unset it if nothing "
            f"is rendered, as in training. {WITHOUT_DISPLAY}"
        ) from error
