"""The settings of a run: typed, printable, written to config.json and read back from it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
import tyro

from wgflow_rl import envs
from wgflow_rl.agents import methods
from wgflow_rl.agents.config import AgentConfig, above, at_least
from wgflow_rl.agents.methods import Schedule
from wgflow_rl.training.routing import Precision, Route

NOT_RESULTS = (
    "run_dir",
    "device",
    "threads",
    "route",
    "graph",
    "env_timeout",
    "env_processes",
    "eval_processes",
)  # say where a run is computed, not what
ONLY_OF_SHARDS = ("memory_gb", "swap_every")  # without --data there are none
DEFAULT_ENV = "pointmaze-medium-navigate-singletask-task1-v0"


@dataclass(frozen=True)
class Settings:
    """Train one policy offline, then online. Numbers left alone are those of the preset for method and environment.

    The flags shown are those of the method: see `--method NAME --help`.

    `--seeds 0-4` (or 0,2,5) in place of `--seed` trains several seeds in one process, each in its own folder.

    A stopped run goes on with `--resume DIR` (seeds trained together with `--resume DIR DIR ...`); beside it only
    --threads, --device, --route, --no-graph, --env-timeout, --env-processes, --eval-processes.
    """

    agent: Annotated[AgentConfig, tyro.conf.arg(name="")]
    schedule: Annotated[Schedule, tyro.conf.arg(name="")]
    method: Annotated[
        str, tyro.conf.arg(help=f"A row of the paper's tables: {', '.join(methods.METHODS)}.")
    ] = "dfp"
    env: str = DEFAULT_ENV
    preset: str = "laptop"
    """laptop (2 cores, minutes), paper (its numbers, sizes and steps) or paper-offline (its offline table)."""
    seed: int = 0
    envs: int = 1
    """Environments that take turns online; still one environment step, then one update."""
    data: str | None = None
    """Folder holding the data's files (X.npz and X-val.npz, or shards). Without it, data is generated and cached."""
    memory_gb: float = 4.0
    """Memory for a folder of shards, of each seed; those that do not fit take turns."""
    swap_every: int = 1000
    """Offline updates after which the oldest shard in memory gives way to the next."""
    run_dir: str | None = None
    """Folder of this run. Without it: runs/METHOD-ENV-sSEED."""
    device: str = "cpu"
    threads: int | None = None
    """CPU threads of torch. Without it, torch's own choice."""
    route: Route = "auto"
    """How a CPU multiplies float32: torch's default, oneDNN, or the faster of them as measured when the run begins."""
    precision: Precision = "f32"
    """f32; tf32 (GPU): products in TF32; mixed: candidates, scores, targets in bfloat16, on a GPU the rest in TF32."""
    graph: bool = True
    """On a GPU, make an update as one CUDA graph; without it, its operations are called one by one."""
    noise_on: Literal["cpu", "device"] = "cpu"
    """Where batches and noise are drawn: cpu, the same numbers for every device; device, no wait for the CPU."""
    env_timeout: float = 600.0
    """Seconds that one step of the environment may take before the run ends itself, to be resumed."""
    env_processes: int = 0
    """Processes that step the environments, beside the one that learns; 0: none. The results are the same."""
    eval_processes: int = 0
    """Processes in which evaluations are made while training goes on, one for each seed at most; 0: training waits.
    The results are the same (of a GPU's policy they are computed on the CPU); each has --env-processes of its own."""

    @staticmethod
    def resumed(args: Sequence[str]) -> Settings:
        """Settings of `--resume DIR`: those the run began with; what says where it is computed may be new."""
        parser = argparse.ArgumentParser(prog="python -m wgflow_rl.train", allow_abbrev=False)
        parser.add_argument(
            "--resume", metavar="DIR", required=True, help="the folder of the run to continue"
        )
        parser.add_argument("--threads", type=int)
        parser.add_argument("--device")
        parser.add_argument("--route", choices=get_args(Route))
        parser.add_argument("--graph", action=argparse.BooleanOptionalAction)
        parser.add_argument("--env-timeout", type=float)
        parser.add_argument("--env-processes", type=int)
        parser.add_argument("--eval-processes", type=int)
        given = parser.parse_args(args)
        changes = {k: v for k, v in vars(given).items() if k != "resume" and v is not None}
        return dataclasses.replace(
            Settings.read(Path(given.resume)), run_dir=given.resume, **changes
        ).check()

    @property
    def folder(self) -> Path:
        return Path(self.run_dir or f"runs/{self.method}-{self.env}-s{self.seed}")

    def check(self) -> Settings:
        """Raises: ValueError naming the first setting that cannot be used, what came and what was wanted."""
        envs.check_name(self.env)
        self.agent.check()
        schedule = self.schedule
        for name, value, least in (
            ("offline_steps", schedule.offline_steps, 0),
            ("online_steps", schedule.online_steps, 0),
            ("online_start", schedule.online_start, 0),
            ("eval_every", schedule.eval_every, 1),
            ("eval_episodes", schedule.eval_episodes, 1),
            ("checkpoint_every", schedule.checkpoint_every, 1),
            ("log_every", schedule.log_every, 1),
            ("data_rows", schedule.data_rows, 1),
            ("seed", self.seed, 0),
            ("threads", self.threads, 1),
            ("swap_every", self.swap_every, 1),
            ("envs", self.envs, 1),
            ("env_processes", self.env_processes, 0),
            ("eval_processes", self.eval_processes, 0),
        ):
            if value is not None:
                at_least(least, **{name: value})
        above(0, memory_gb=self.memory_gb, env_timeout=self.env_timeout)
        if not 0 <= schedule.online_share <= 1:
            raise ValueError(
                f"--online-share is {schedule.online_share}; wanted a fraction in [0, 1]"
            )
        if 0 < schedule.online_steps <= schedule.online_start:
            raise ValueError(
                f"--online-start is {schedule.online_start} of {schedule.online_steps} online steps, so nothing would "
                "be learned online; wanted fewer"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"--device is {self.device!r}, which torch cannot use here ({reason}); cpu always works"
            ) from error
        if self.precision == "tf32" and torch.device(self.device).type == "cpu":
            raise ValueError("--precision is 'tf32', which no CPU has; wanted f32 or mixed")
        return self

    @staticmethod
    def read(folder: Path) -> Settings:
        """The settings a run began with. Raises: FileNotFoundError, ValueError when config.json is not one of ours."""
        path = folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{folder} holds no run: there is no config.json in it")
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["settings"]
            if stored["method"] not in methods.METHODS:
                raise KeyError(f"unknown method {stored['method']!r}")
            agent = _rebuild(type(methods.ROWS[stored["method"]]), stored["agent"])
            schedule = _rebuild(Schedule, stored["schedule"])
            # A run of a version without routes took torch's own.
            return _rebuild(
                Settings, {"route": "default", **stored, "agent": agent, "schedule": schedule}
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not the config.json of a run ({type(error).__name__}: {error})"
            ) from error


def from_command_line(
    args: Sequence[str], *, prog: str = "python -m wgflow_rl.train", about: str | None = None
) -> Settings:
    """Read the flags of `python -m wgflow_rl.train`. The preset, method and environment choose every other default.

    `prog` and `about` head the help of another command that takes these flags.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="laptop")
    first.add_argument("--method", default="dfp")
    first.add_argument("--env", default=DEFAULT_ENV)
    chosen, _ = first.parse_known_args(args)
    envs.check_name(chosen.env)
    agent, schedule = methods.preset(chosen.preset, chosen.method, chosen.env)
    default = Settings(agent, schedule, method=chosen.method, env=chosen.env, preset=chosen.preset)
    return tyro.cli(
        Settings, args=list(args), default=default, prog=prog, description=about
    ).check()


def _rebuild(kind: type, stored: Mapping[str, Any]) -> Any:
    """A frozen dataclass from its JSON form: lists become tuples again, unknown names and other types are refused."""
    known = get_type_hints(kind)
    if unknown := stored.keys() - known.keys():
        raise KeyError(f"unknown setting(s) {', '.join(sorted(unknown))}")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
    for name, value in values.items():
        if not _is(value, known[name]):
            raise TypeError(
                f"{name} is {value!r}; wanted {getattr(known[name], '__name__', known[name])}"
            )
    return kind(**values)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of an annotated type; a float may be written as an integer."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if args := get_args(kind):  # tuple[int, ...], or a union such as int | None
        if get_origin(kind) is tuple:
            return isinstance(value, tuple) and all(_is(entry, args[0]) for entry in value)
        return any(_is(value, arg) for arg in args)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def as_json(settings: Settings) -> dict[str, Any]:
    return dataclasses.asdict(settings)


def of_results(told: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on, of settings as `as_json` gives them in this or an older version, defaults filled in."""
    fields = dataclasses.fields(Settings)
    whole = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | dict(told)
    left_out = (*NOT_RESULTS, *(ONLY_OF_SHARDS if whole["data"] is None else ()))
    return {name: value for name, value in whole.items() if name not in left_out}
