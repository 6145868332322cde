"""Export a trained policy to ONNX or TorchScript: `python -m wgflow_rl.export RUN --format onnx`.

The file computes `agent.act`: its input is an observation in the environment's units, its output
the chunk to execute; normalisation, critic and best-of-N are included. Random draws are inputs, so
the file is a deterministic function.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wgflow_rl import plugins
from wgflow_rl.agents.agent import Agent
from wgflow_rl.training.provenance import versions
from wgflow_rl.training.settings import Settings
from wgflow_rl.training.trained import load_agent, visited_states
from wgflow_rl.utils.cli import UserError, one_line_errors
from wgflow_rl.utils.files import replacing
from wgflow_rl.utils.flags import MOST, at_least, at_most

FORMAT = 1  # version of the metadata stored in the file
STATES = 64  # states of the policy's episodes on which the file is compared with the agent
TOLERANCE = 1e-4  # absolute, of actions in [-1, 1]; rounding of float32 is about 1e-6
KINDS = {"randn": "normal", "rand": "uniform"}  # torch function -> name of the input
LEAST_OPSET = 18  # of torch's exporter, whose conversion to older sets fails for these policies
# ONNX's file format of each operator set's first release
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
SUFFIX = {"onnx": ".onnx", "torchscript": ".pt"}

Run = Callable[..., Tensor]  # (obs [B, S], *draws) -> actions [B, h, A]


@dataclass(frozen=True)
class Args:
    """Write the policy of a run's checkpoint to one file, verified against the agent."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    format: Literal["onnx", "torchscript"] = "onnx"
    out: Path | None = None
    """File to write (default: policy.onnx or policy.pt in the run's folder)."""
    checkpoint: Literal["last", "best"] = "last"
    """best: checkpoint with the highest success rate during training (or score), the latest of equal ones."""
    act_samples: int | None = None
    """Execute the best of this many chunks (default: as trained); 1 omits the critic."""
    opset: int | None = None
    """ONNX operator set, for runtimes that lack the newest (default: the exporter's)."""
    plugin: plugins.Flag = ()

    def check(self) -> Args:
        """Return the arguments. Raises: ValueError naming the first invalid flag."""
        at_least(1, act_samples=self.act_samples)
        at_most(MOST, act_samples=self.act_samples)
        if self.opset is not None and self.format != "onnx":
            raise ValueError(f"--opset is {self.opset}, but only --format onnx has operator sets")
        at_least(LEAST_OPSET, opset=self.opset)
        if self.out is not None and self.out.suffix != SUFFIX[self.format]:
            raise ValueError(
                f"--out is {self.out}; wanted a name that ends in {SUFFIX[self.format]}"
            )
        return self


class RandomDraws(TorchFunctionMode):
    """Record torch's random tensors inside the block, or replace them by `given`, in order."""

    def __init__(self, given: Sequence[Tensor] | None = None):
        super().__init__()
        self.given = None if given is None else list(given)
        self.made: list[tuple[str, Tensor]] = []  # (kind, draw)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = KINDS.get(getattr(func, "__name__", ""))
        if kind is None:
            if kwargs.get("generator") is not None:
                raise ValueError(
                    f"this agent draws with torch.{func.__name__}, which cannot be exported; draw with "
                    "wgflow_rl.agents.sampling.normal or uniform in `act`"
                )
            return func(*args, **kwargs)
        if self.given is not None:
            return self.given.pop(0)
        draw = func(*args, **kwargs)
        self.made.append((kind, draw))
        return draw


class PolicyModule(nn.Module):
    """`agent.act` with noise as arguments: `(obs [B, S], *draws) -> actions [B, h, A]`."""

    def __init__(self, agent: Agent):
        super().__init__()
        self.agent = agent

    def forward(self, obs: Tensor, *draws: Tensor) -> Tensor:
        with RandomDraws(draws):
            return self.agent.act(obs, torch.Generator())


def reference(
    agent: Agent, obs: Tensor, *, seed: int = 0
) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """Actions of the agent in states [B, S], and its random draws, (kind, [B, ...]) each."""
    with RandomDraws() as drawn:
        actions = agent.act(obs, torch.Generator().manual_seed(seed))
    return actions, drawn.made


def input_names(drawn: Sequence[tuple[str, Tensor]]) -> list[str]:
    """Names of the inputs: obs, then the draws by kind: normal, uniform, normal_2, ..."""
    kinds = [kind for kind, _ in drawn]
    counts = [kinds[: i + 1].count(kind) for i, kind in enumerate(kinds)]
    return ["obs", *(k if n == 1 else f"{k}_{n}" for k, n in zip(kinds, counts, strict=True))]


def describe(
    settings: Settings, step: int, obs: Tensor, actions: Tensor, drawn: Sequence[tuple[str, Tensor]]
) -> dict[str, Any]:
    """Metadata of the file, JSON-able: inputs, outputs and origin."""
    tensors = [obs, *(draw for _, draw in drawn)]
    shapes = [["batch", *tensor.shape[1:]] for tensor in tensors]
    kinds = ["observation, in the environment's units", *(kind for kind, _ in drawn)]
    parts = zip(input_names(drawn), shapes, kinds, strict=True)
    return {
        "format": FORMAT,
        "env": settings.env,
        "method": settings.method,
        "seed": settings.seed,
        "step": step,
        "inputs": [{"name": name, "shape": shape, "is": kind} for name, shape, kind in parts],
        "output": {
            "name": "actions",
            "shape": ["batch", *actions.shape[1:]],
            "is": "a chunk in [-1, 1]",
        },
        "agent": dataclasses.asdict(settings.agent),
        "versions": versions(),
    }


# ---- the two formats -------------------------------------------------------------------------------------------------


def write_onnx(
    policy: nn.Module,
    inputs: Sequence[Tensor],
    about: dict[str, Any],
    path: Path,
    opset: int | None = None,
) -> Run:
    """Write an ONNX file for any batch size, with metadata "wgflow"; return it loaded.

    Raises:
        UserError: If a package is missing, or the policy cannot be written in the operator set.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (needed by the exporter, whose own message is less clear)
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}: pip install 'wgflow[export]'. --format torchscript works without."
        ) from error
    names = [part["name"] for part in about["inputs"]]
    sizes = [{0: torch.export.Dim.DYNAMIC} for _ in inputs]
    shapes = (sizes[0], tuple(sizes[1:])) if len(sizes) > 1 else (sizes[0],)
    program = torch.onnx.export(
        policy, tuple(inputs), dynamo=True, dynamic_shapes=shapes, input_names=names,
        output_names=[about["output"]["name"]], opset_version=opset, verbose=False,
    )  # fmt: skip
    assert program is not None
    written = program.model.opset_imports.get("")
    if opset is not None and written != opset:  # the converter only warns
        raise UserError(
            f"--opset is {opset}, but this policy could only be written in operator set {written}; choose that, or "
            "--format torchscript"
        )
    if opset in IR_VERSIONS:
        program.model.ir_version = IR_VERSIONS[opset]
    program.model.metadata_props["wgflow"] = json.dumps(about)
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        (actions,) = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
        return torch.as_tensor(actions)

    return run


def write_torchscript(
    policy: nn.Module,
    inputs: Sequence[Tensor],
    about: dict[str, Any],
    path: Path,
    opset: None = None,
) -> Run:
    """Write a TorchScript archive for any batch size, with wgflow.json; return it loaded."""
    traced = torch.jit.trace(policy, tuple(inputs), check_trace=False)
    frozen = torch.jit.freeze(traced)  # drops unused modules such as target networks
    torch.jit.save(frozen, path, _extra_files={"wgflow.json": json.dumps(about)})
    return torch.jit.load(path)


WRITERS = {"onnx": write_onnx, "torchscript": write_torchscript}


def write(
    agent: Agent,
    form: str,
    obs: Tensor,
    about: dict[str, Any],
    path: Path,
    opset: int | None = None,
) -> Run:
    """Export the agent, traced on two states of obs [B >= 2, S]; return the loaded file."""
    _, drawn = reference(agent, obs[:2])
    inputs = [obs[:2], *(draw for _, draw in drawn)]
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation warnings of torch's exporters
            return WRITERS[form](PolicyModule(agent).eval(), inputs, about, path, opset)
    finally:
        logger.setLevel(level)


# ---- comparison with the agent ------------------------------------------------------------------------------------


def compare(agent: Agent, run: Run, obs: Tensor) -> tuple[float, int]:
    """Largest |difference| between actions of a file and its agent, and the number of ties.

    Best-of-N may select either of two chunks whose values are equal in float32. Such a tie is a
    state in which the agent selects the file's chunk after a perturbation of the observation by
    rounding; ties are counted, not compared.
    """
    actions, drawn = reference(agent, obs)
    draws = [draw for _, draw in drawn]
    got = run(obs, *draws)
    error = (got - actions).abs().flatten(1).amax(1)
    apart = error > TOLERANCE
    nudge = torch.Generator().manual_seed(0)
    for _ in range(16 if apart.any() else 0):
        near = obs * (1 + 1e-6 * torch.randn(obs.shape, generator=nudge))
        with RandomDraws(draws):
            other = agent.act(near, torch.Generator())
        error = torch.minimum(error, (got - other).abs().flatten(1).amax(1))
    ties = apart & (error <= TOLERANCE)
    return float(error[~ties].max() if not ties.all() else 0.0), int(ties.sum())


def export(args: Args) -> dict[str, Any]:
    """Write the file, verify it against the agent, and return the printed report.

    Also raises what `load_agent` raises.

    Raises:
        RuntimeError: If the actions differ, with nothing written.
    """
    agent, settings, step = load_agent(
        args.run, best=args.checkpoint == "best", act_samples=args.act_samples
    )
    path = args.out or args.run / f"policy{SUFFIX[args.format]}"
    obs = visited_states(agent, settings, STATES)
    actions, drawn = reference(agent, obs)
    about = describe(settings, step, obs, actions, drawn)
    about["agent"] |= {} if args.act_samples is None else {"act_samples": args.act_samples}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        run = write(agent, args.format, obs, about, temporary, args.opset)
        error, ties = compare(agent, run, obs)
        alone, _ = compare(agent, run, obs[:1])  # runtimes have separate code for a batch of one
        error = max(error, alone, key=lambda e: (math.isnan(e), e))
        if not error <= TOLERANCE:
            raise UserError(
                f"the actions of the {args.format} file differ from those of the run by up to {error:.2g} on "
                f"{STATES} states (allowed: {TOLERANCE:g}). Nothing was written; please report it with config.json"
            )
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "inputs": {part["name"]: part["shape"] for part in about["inputs"]},
        "actions": about["output"]["shape"],
        "compared_states": STATES,
        "largest_difference": error,
        "ties": ties,
    }


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, prog="python -m wgflow_rl.export")
    with one_line_errors():
        plugins.load(args.plugin)
        print(json.dumps(export(args.check()), indent=2))


if __name__ == "__main__":
    main()
