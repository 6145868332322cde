"""Typed settings of a run, set by flags and stored in config.json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import gymnasium
import torch
import tyro

from wgflow_rl import envs, plugins
from wgflow_rl.agents import presets
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.schedules import Schedule
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training.matmul import Route
from wgflow_rl.utils.files import expand_user, require_regular
from wgflow_rl.utils.flags import above, at_least, at_most
from wgflow_rl.utils.processes import cores

DEFAULT_ENV = "pointmaze-medium-navigate-singletask-task1-v0"
PROG = "python -m wgflow_rl.train"
ONLY_OF_SHARDS = ("memory_gb", "swap_every")  # effective only if --data is a folder of shards
# Without effect on the numbers of the offline phase; the agent has its own (`AgentConfig.online_only`).
ONLINE_ONLY = (
    *("preset", "envs", "online_steps", "online_start", "online_share"),
    *("log_every", "checkpoint_every"),
)


@dataclass(frozen=True)
class Machine:
    """Settings of the machine. A resumed run may change them; only rounding depends on them."""

    device: str = "cpu"
    threads: int | None = None
    """CPU threads of torch, kept on resume since rounding depends on them (default: torch's)."""
    route: Route = "default"
    """Float32 matrix products on a CPU: torch's own, or oneDNN's if they are float32 there."""
    env_timeout: float = 600.0
    """Time limit in seconds for a step of the environment, after which the run stops."""
    async_eval: bool = False
    """Evaluate in another process on the CPU, concurrently with training, with equal results."""
    film: bool = False
    """Write film.mp4, four episodes of the trained policy, at the end; `wgflow_rl.evaluate --video` films any run."""

    def check(self) -> None:
        """Raise ValueError naming the first invalid setting."""
        above(0, env_timeout=self.env_timeout)
        at_least(1, threads=self.threads)
        at_most(1024, threads=self.threads)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"--device is {self.device!r}, which torch cannot use here ({reason}); cpu always works"
            ) from error

    def resolved(self) -> Machine:
        """Set torch's number of threads, and return the settings with that number.

        A RuntimeWarning is issued if the machine has fewer cores than threads.
        """
        threads, available = self.threads or torch.get_num_threads(), cores()
        if self.threads and threads > available:
            warnings.warn(
                f"--threads is {threads}, but the number of available cores is {available}: training will be slow. "
                "With another number of threads a resumed run rounds its sums differently.",
                RuntimeWarning,
                stacklevel=2,
            )
        torch.set_num_threads(threads)
        return replace(self, threads=threads)


@dataclass(frozen=True)
class Settings:
    """Train one policy offline, then online.

    Defaults are those of the preset for method and environment.

    The flags depend on the method: see `--method NAME --help`. `--resume DIR` continues a stopped
    run and takes only --plugin, the flags of the machine, --device to --film, and --data if the data have moved.
    """

    agent: Annotated[AgentConfig, tyro.conf.arg(name="")]
    schedule: Annotated[Schedule, tyro.conf.arg(name="")]
    method: Annotated[
        str,
        tyro.conf.arg(
            help="A method of a plugin, a row of the paper's tables or a variant of DFP: "
            f"{', '.join(presets.METHODS)}."
        ),
    ] = presets.DEFAULT
    env: str = DEFAULT_ENV
    preset: str = "laptop"
    """laptop (minutes on 2 cores), paper (its settings), or pure offline RL of either size:
    laptop-offline, paper-offline."""
    seed: int = 0
    envs: int = 1
    """Number of environments that take turns online, with one step per update."""
    data: str | None = None
    """Folder with X.npz and X-val.npz, or shards (default: generate and cache data)."""
    memory_gb: float = 4.0
    """Memory for a folder of shards; shards that do not fit take turns."""
    swap_every: int = 1000
    """Offline updates between replacements of the oldest shard in memory by the next."""
    offline_run: str | None = None
    """Folder of a run with an equal offline phase, for example with --online-steps 0: begin after it."""
    run_dir: str | None = None
    """Folder of this run (default: runs/METHOD-ENV-sSEED)."""
    noise_on: Literal["cpu", "device"] = "cpu"
    """Where batches and noise are drawn: cpu (equal on every device) or device (no transfers)."""
    plugin: plugins.Flag = ()
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

    @staticmethod
    def resumed(args: Sequence[str]) -> Settings:
        """Settings of `--resume DIR [--plugin MODULE] [--data DIR] [flags of Machine]`: the run's, with a new machine.

        With `--data` the files may have moved; a checkpoint refuses other contents.
        """
        first = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
        first.add_argument("--resume", metavar="DIR", required=True)
        first.add_argument("--plugin", action="append", default=[])
        first.add_argument("--data", metavar="DIR")
        folder, flags = first.parse_known_args(args)
        plugins.load(folder.plugin)
        settings = Settings.read(expand_user(folder.resume))
        about = f"Continue the run in {folder.resume}."
        machine = tyro.cli(
            Machine, args=flags, default=settings.machine, prog=PROG, description=about
        )
        more = tuple(name for name in folder.plugin if name not in settings.plugin)
        plugin = (*settings.plugin, *more)
        data = settings.data if folder.data is None else folder.data
        resumed = replace(
            settings, run_dir=folder.resume, plugin=plugin, machine=machine, data=data
        )
        return resumed.check()

    @property
    def folder(self) -> Path:
        return Path(self.run_dir or f"runs/{self.method}-{self.env}-s{self.seed}")

    def make_env(self, **options: Any) -> gymnasium.Env:
        """Make the environment as the agent sees it, with its history. Options and errors: `envs.make`."""
        return envs.make(self.env, history=self.agent.history, **options)

    def make_guard(self) -> Guard:
        """Make the guard of the run's environments."""
        return Guard(self.env, timeout=self.machine.env_timeout)

    def check(self) -> Settings:
        """Return the settings, with absolute paths of data and offline run: a run may be resumed from another folder.

        Raises:
            ValueError: The message names the first invalid setting.
        """
        envs.parse(self.env)
        self.agent.check()
        self.machine.check()
        self.schedule.check()
        at_least(0, seed=self.seed)
        at_least(1, swap_every=self.swap_every, envs=self.envs)
        above(0, memory_gb=self.memory_gb)
        at_most(2**63 - 1, seed=self.seed)
        at_most(10_000, envs=self.envs)
        steps = self.schedule.offline_steps, self.schedule.online_steps
        if self.offline_run is not None and not all(steps):
            raise ValueError(
                f"--offline-run came with --offline-steps {steps[0]} and --online-steps {steps[1]}; wanted a run of "
                "both phases, or no --offline-run"
            )
        every = self.schedule.eval_every
        if self.offline_run is not None and steps[0] % every:
            raise ValueError(
                f"--offline-run came with --offline-steps {steps[0]} and --eval-every {every}; wanted an evaluation at "
                "the end of the offline phase (a divisor of its steps), or no --offline-run"
            )
        paths = {"data": self.data, "offline_run": self.offline_run}
        found = {name: str(expand_user(p).absolute()) for name, p in paths.items() if p is not None}
        if self.run_dir is not None:
            found["run_dir"] = str(expand_user(self.run_dir))
        return replace(self, **found)

    @staticmethod
    def read(folder: Path) -> Settings:
        """Read a run's settings, after importing its plugins.

        A plugin that is not installed is a RuntimeWarning, since the run may not need it: it may
        be an entry point now, or add a row callback only.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If config.json is damaged or of another version, or the method is unknown.
            UserError: If the import of a plugin fails.
        """
        path = folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{folder} holds no run: there is no config.json in it")
        require_regular(path)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["settings"]
            named = stored.get("plugin", [])
            if not isinstance(named, list) or not _has_type(tuple(named), tuple[str, ...]):
                raise TypeError(f"plugin is {named!r}; wanted a list of names")
            plugins.refuse_inside(folder, named)
            plugins.load(named, optional=True)
            if not isinstance(stored["method"], str):
                raise TypeError(f"method is {stored['method']!r}; wanted str")
            parts = {
                "agent": type(presets.defaults(stored["method"])),
                "schedule": Schedule,
                "machine": Machine,
            }
            built = {name: _from_json(kind, stored[name]) for name, kind in parts.items()}
            return _from_json(Settings, stored | built)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not the config.json of a run of this version ({type(error).__name__}: {error})"
            ) from error


def from_command_line(
    args: Sequence[str], *, prog: str = PROG, about: str | None = None
) -> Settings:
    """Parse the flags of `python -m wgflow_rl.train`; preset, method and environment determine all other defaults.

    Other commands with these flags give the name (`prog`) and the description (`about`) of their help text.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="laptop")
    first.add_argument("--method")
    first.add_argument("--env", default=DEFAULT_ENV)
    first.add_argument("--plugin", action="append", default=[])
    chosen, _ = first.parse_known_args(args)
    plugins.load(chosen.plugin)
    envs.parse(chosen.env)
    method = chosen.method or presets.default_method(chosen.env)
    agent, schedule = presets.preset(chosen.preset, method, chosen.env)
    default = Settings(agent, schedule, method=method, env=chosen.env, preset=chosen.preset)
    return tyro.cli(
        Settings, args=list(args), default=default, prog=prog, description=about
    ).check()


def _from_json(kind: type, stored: Mapping[str, Any]) -> Any:
    """Build a frozen dataclass from JSON, with lists as tuples.

    Raises:
        KeyError: For unknown names.
        TypeError: For wrong types.
    """
    known = get_type_hints(kind)
    if unknown := stored.keys() - known.keys():
        raise KeyError(f"unknown setting(s) {', '.join(sorted(unknown))}")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
    for name, value in values.items():
        if not _has_type(value, known[name]):
            wanted = getattr(known[name], "__name__", known[name])
            raise TypeError(f"{name} is {value!r}; wanted {wanted}")
    return kind(**values)


def _has_type(value: Any, kind: Any) -> bool:
    """Return True if a JSON value is of an annotated type; integers are valid floats."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if args := get_args(kind):  # tuple[int, ...], or a union such as int | None
        if get_origin(kind) is tuple:
            return isinstance(value, tuple) and all(_has_type(entry, args[0]) for entry in value)
        return any(_has_type(value, arg) for arg in args)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def as_json(settings: Settings) -> dict[str, Any]:
    return dataclasses.asdict(settings)


def of_results(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that results depend on, from the output of `as_json`."""
    left_out = (
        "run_dir",
        "offline_run",
        "plugin",
        "machine",
        *(ONLY_OF_SHARDS if stored["data"] is None else ()),
    )
    return {name: value for name, value in stored.items() if name not in left_out}


def flat(settings: Settings) -> dict[str, Any]:
    """The settings that results depend on, by flag."""
    stored = of_results(as_json(settings))
    agent, schedule = stored.pop("agent"), stored.pop("schedule")
    return stored | agent | schedule


def of_offline_phase(settings: Settings) -> dict[str, Any]:
    """Select the settings that updates and evaluations before the online phase depend on, by flag.

    The method is the class of its settings: methods of one class may differ online only.
    """
    left_out, kind = settings.agent.online_only.union(ONLINE_ONLY), type(settings.agent)
    found = {name: value for name, value in flat(settings).items() if name not in left_out}
    return found | {"method": f"{kind.__module__}.{kind.__qualname__}"}
