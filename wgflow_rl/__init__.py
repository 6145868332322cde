"""Drifting Field Policy and its baselines, offline and online, on `wgflow`'s public names."""

from importlib.util import find_spec as _find_spec

_missing = [
    name
    for name in ("gymnasium", "pandas", "safetensors", "tensorboard", "tqdm", "tyro")
    if _find_spec(name) is None
]
if _missing:
    # With this name, `python -m wgflow_rl.train` prints one line instead of a traceback.
    raise ModuleNotFoundError(
        f"wgflow_rl needs {', '.join(_missing)}, which the extra rl installs: pip install 'wgflow[rl]'",
        name=__name__,
    )
