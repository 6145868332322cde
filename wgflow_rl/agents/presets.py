"""Settings of the paper's methods and of our variants, per task and preset, each with its source.

Sources: *DFP* is Koo et al. 2026, *FQL* Park et al. 2025, *Q-chunking* Li et al. 2025, *MVP* Zhan et al. 2026. DFP's
appendix A.3 says of its baselines only that they follow their own papers; a number that we could not trace to one is
marked "our choice".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from wgflow_rl import plugins
from wgflow_rl.agents.agent import Agent
from wgflow_rl.agents.bfn import BFN, BFNConfig
from wgflow_rl.agents.cac import CAC, CACConfig
from wgflow_rl.agents.cloning import (
    BC,
    BCConfig,
    DriftBC,
    DriftBCConfig,
    FlowBC,
    FlowBCConfig,
    MeanFlowBC,
    MeanFlowBCConfig,
)
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.dfp import DFP, DFPConfig
from wgflow_rl.agents.driftql import DriftQL, DriftQLConfig
from wgflow_rl.agents.fawac import FAWAC, FAWACConfig
from wgflow_rl.agents.fbrac import FBRAC, FBRACConfig
from wgflow_rl.agents.fedit import FEdit, FEditConfig
from wgflow_rl.agents.fql import FQL, FQLConfig
from wgflow_rl.agents.idql import IDQL, IDQLConfig
from wgflow_rl.agents.ifql import IFQL, IFQLConfig
from wgflow_rl.agents.iql import IQL, IQLConfig
from wgflow_rl.agents.mvp import MVP, MVPConfig
from wgflow_rl.agents.qam import QAM, QAMConfig
from wgflow_rl.agents.rebrac import ReBRAC, ReBRACConfig
from wgflow_rl.agents.schedules import (
    ARM_SCHEDULE,
    CAN_SCHEDULE,
    LIFT_SCHEDULE,
    MAZE_SCHEDULE,
    PAPER,
    PUSHT_SCHEDULE,
    SQUARE_SCHEDULE,
    Schedule,
)
from wgflow_rl.agents.srpo import SRPO, SRPOConfig

C = TypeVar("C", bound=AgentConfig)


# ---- the methods ---------------------------------------------------------------------------------------------------

OURS = "likelihood+energy"  # the field of our default method
ONLINE: dict[str, AgentConfig] = {  # offline, then online
    "bfn": BFNConfig(chunk=1, target_samples=4, act_samples=4),  # N = 4 (Q-chunking)
    "qc-bfn": BFNConfig(),
    "fql": FQLConfig(chunk=1),
    "qc-fql": FQLConfig(),
    "mvp": MVPConfig(),
    "mvp-topk": MVPConfig(lam=0.5),  # not given for MVP (DFP A.2): our choice, DFP's lambda
    "dfp": DFPConfig(),
    "dfp-no-topk": DFPConfig(lam=0.0),
    # DFP as its published code computes it: field and temperature R = 0.1 for every task, best-of-16 target.
    "dfp-published": DFPConfig(
        field="published:0.1", improve_field="published:0.1", target_samples=16
    ),
    # Ours: DFP with another field in both terms.
    "dfp-ml-energy": DFPConfig(field=OURS, improve_field=OURS),
    "dfp-ml-energy-no-topk": DFPConfig(field=OURS, improve_field=OURS, lam=0.0),
    "dfp-ml": DFPConfig(field="likelihood", improve_field="likelihood"),
    "dfp-energy": DFPConfig(field="energy", improve_field="energy"),
    # Newer than the paper.
    "driftql": DriftQLConfig(),
    "fedit": FEditConfig(),
    "qam": QAMConfig(),
    "qam-e": QAMConfig(edit_scale=0.1),
}
DEFAULT = "dfp-ml-energy"  # of `python -m wgflow_rl.train`
DEFAULT_PUSHT = "drift-bc"  # the same with `--env pusht`, whose demonstrations are official
OFFLINE: dict[str, AgentConfig] = {  # offline only: DFP's Table 7, beside fql and dfp
    "bc": BCConfig(),
    "iql": IQLConfig(),
    "rebrac": ReBRACConfig(),
    "idql": IDQLConfig(),
    "srpo": SRPOConfig(),
    "cac": CACConfig(),
    "fawac": FAWACConfig(),
    "fbrac": FBRACConfig(),
    "ifql": IFQLConfig(),
}
CLONING: dict[str, AgentConfig] = {  # cloning of chunks without values, beside bc; not in the paper
    "drift-bc": DriftBCConfig(),
    "flow-bc": FlowBCConfig(),
    "meanflow-bc": MeanFlowBCConfig(),
}
CLONERS = ("bc", *CLONING)  # methods without values
ROWS = ONLINE | OFFLINE | CLONING
METHODS = tuple(ROWS)  # of this package; `register` adds to ROWS
AGENTS: dict[type[AgentConfig], Callable[..., Agent]] = {
    BFNConfig: BFN,
    BCConfig: BC,
    DriftBCConfig: DriftBC,
    FlowBCConfig: FlowBC,
    MeanFlowBCConfig: MeanFlowBC,
    IQLConfig: IQL,
    ReBRACConfig: ReBRAC,
    IDQLConfig: IDQL,
    SRPOConfig: SRPO,
    CACConfig: CAC,
    FAWACConfig: FAWAC,
    FBRACConfig: FBRAC,
    IFQLConfig: IFQL,
    DFPConfig: DFP,
    FQLConfig: FQL,
    DriftQLConfig: DriftQL,
    FEditConfig: FEdit,
    QAMConfig: QAM,
    MVPConfig: MVP,
}

REGISTERED: dict[str, Schedule | None] = {}  # methods of other packages, with their schedules


def register(
    name: str, config: AgentConfig, agent: Callable[..., Agent], *, schedule: Schedule | None = None
) -> None:
    """Register a method, known to every command from then on; again under its name: replace it.

    Args:
        name: value of `--method`.
        config: its settings in every preset. Its class, a frozen dataclass of its own, determines
            the flags and selects the agent.
        agent: class of the agent, a subclass of `Agent`.
        schedule: its schedule in every preset, without the online phase in those of offline RL; None:
            that of the preset.

    Raises:
        ValueError: If the name or the class of `config` belongs to another method.
    """
    plugins.check_name("the method", name)
    if name in METHODS:
        raise ValueError(f"the method {name!r} is one of wgflow's; choose another name")
    kind = type(config)
    owners = [other for other, cfg in ROWS.items() if type(cfg) is kind and other != name]
    if owners and AGENTS[kind] is not agent:
        raise ValueError(
            f"{kind.__name__} holds the settings of {owners[0]!r}, which has another agent; derive a "
            f"frozen dataclass from it for {name!r}"
        )
    ROWS[name], AGENTS[kind], REGISTERED[name] = config, agent, schedule


def defaults(method: str) -> AgentConfig:
    """The settings of a method, before those of task and preset.

    Raises:
        ValueError: The message names the known methods.
    """
    plugins.load_installed()
    if method not in ROWS:
        raise ValueError(
            f"method is {method!r}; known methods: {', '.join(ROWS)}. --plugin MODULE adds those of a module."
        )
    return ROWS[method]


ROBOMIMIC = ("lift", "can", "square")
DFPS = tuple(name for name, cfg in ONLINE.items() if isinstance(cfg, DFPConfig))
DRIFTING = ("dfp", "dfp-no-topk")  # with the paper's field, whose bandwidths are set per task
FQLS = ("fql", "qc-fql")


def drifting(*h: float) -> dict[str, str]:
    """Eq. 3 in both terms; several bandwidths combine as the mean of their fields (our choice)."""
    field = "+".join(f"drifting:{length:g}" for length in h)
    return {"field": field, "improve_field": field}


# (methods, beginnings of environment names, settings, source); later rows win.
Rows = tuple[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], str], ...]
TASKS: Rows = (
    ((*DFPS, "mvp-topk"), ROBOMIMIC, {"top_k": 2}, "DFP Sec. 5.1, Table 5"),
    (DFPS, ROBOMIMIC, {"act_samples": 4}, "DFP Table 5"),
    (DRIFTING, ROBOMIMIC, drifting(0.005, 0.05), "DFP Table 5"),
    (("mvp", "mvp-topk"), ROBOMIMIC, {"act_samples": 4}, "our choice: as DFP, Table 5"),
    (("mvp", "mvp-topk"), ("cube-triple",), {"ivc": 0.0}, "DFP's published commands"),
    (
        ("qc-bfn",),
        ("can",),
        {"target_samples": 16, "act_samples": 16},
        "Q-chunking's authors, issue 3 of their repository",
    ),
    (FQLS, ("cube-triple",), {"alpha": 100.0}, "Q-chunking's commands"),
    (FQLS, ("cube-double", "cube-single", "scene"), {"alpha": 300.0}, "FQL's commands"),
    (FQLS, ("puzzle",), {"alpha": 1000.0}, "FQL's commands, for single actions"),
    (FQLS, ("cube-quadruple", *ROBOMIMIC), {"alpha": 100.0}, "our choice: as cube-triple"),
    (
        FQLS,
        ("pointmaze",),
        {"alpha": 3.0},
        "our choice: the best of 1, 3, 10, 30 for qc-fql in the medium maze, one seed each",
    ),
    (
        ("driftql",),
        ("cube-single",),
        {"temperature": 0.02, "alpha": 60.0, "gamma": 0.995},
        "DriftQL's code",
    ),
    (("driftql",), ("cube-double",), {"generated": 4}, "DriftQL's code"),
    (("driftql",), ("scene",), {"alpha": 250.0, "gamma": 0.995, "target": "min"}, "DriftQL's code"),
    (
        ("driftql",),
        ("puzzle-3x3",),
        {"temperature": 0.5, "alpha": 50.0, "target": "min"},
        "DriftQL's code",
    ),
    (("driftql",), ("puzzle-4x4",), {"temperature": 0.8, "alpha": 300.0}, "DriftQL's code"),
    (("fedit",), ("cube-triple",), {"edit_scale": 0.3}, "QAM's code"),
    (("fedit",), ("cube-quadruple",), {"edit_scale": 0.4}, "QAM's code"),
    (("fedit",), ("puzzle-4x4",), {"edit_scale": 0.8}, "QAM's code"),
    (("qam",), ("cube-triple", "puzzle-3x3"), {"inverse_temperature": 3.0}, "QAM's code"),
    (("qam",), ("puzzle-4x4",), {"inverse_temperature": 30.0}, "QAM's code"),
    (("qam-e",), ("cube-double", "scene"), {"edit_scale": 0.0}, "QAM's code"),
    (("qam-e",), ("cube-triple", "cube-quadruple"), {"inverse_temperature": 3.0}, "QAM's code"),
    (("qam-e",), ("puzzle-4x4",), {"inverse_temperature": 0.1, "edit_scale": 0.9}, "QAM's code"),
)
# DFP in pure offline RL. The environments of Table 8 stand for one task each; their other tasks take the same settings.
OFFLINE_TASKS: Rows = (
    (DFPS, ("cube-single",), {"lam": 0.45, "candidates": 16, "top_k": 8}, "DFP Table 8"),
    (DFPS, ("cube-double",), {"lam": 0.55, "candidates": 16, "top_k": 8}, "DFP Table 8"),
    (DFPS, ("scene", "puzzle-3x3"), {"lam": 0.5, "candidates": 16, "top_k": 8}, "DFP Table 8"),
    (DFPS, ("puzzle-4x4",), {"lam": 0.5, "candidates": 32, "top_k": 16}, "DFP Table 8"),
    (DRIFTING, ("cube-single", "cube-double"), drifting(0.05), "DFP Table 8"),
    (DRIFTING, ("scene", "puzzle-3x3", "puzzle-4x4"), drifting(0.01, 0.05), "DFP Table 8"),
)


# ---- presets --------------------------------------------------------------------------------------------------------

# Settings that every method shares at laptop size; fields and lambda are those of the method.
MAZE = DFPConfig(
    hidden=(256, 256),
    candidates=8,
    top_k=2,
    batch=128,
    lr=1e-3,
    lr_end=0.1,  # a constant rate leaves the critic noisy, and one wrong spot of it traps every episode
    target_rate=3e-2,  # some 35 chunks from start to goal: a slower target critic carries the value there too late
    old_rate=1e-3,
    target_samples=4,
    act_samples=16,
    act_temperature=1.0,  # in steps to the goal; the best alone, where the critic is wrong, is wrong every time
    standardise=True,
)
# Arms, Can and Square. Of the temperatures 0, 1, 2 and 4, 2 was the best (docs/rl.md, "What limits the arm").
ARM = replace(MAZE, target_rate=1e-2, act_samples=32, act_temperature=2.0)
# Lift and all other environments: a temperature is in the units of the reward, so it is no default.
OTHER = replace(ARM, lr_end=1.0, act_temperature=0.0)
PUSHT = replace(
    MAZE,
    chunk=8,  # 2 observations, 16 actions predicted, 8 executed: Diffusion Policy's protocol (Chi et al. 2023)
    history=2,
    horizon=16,
    trunk=(512,) * 4,
    lr_end=1.0,
    lr_end_offline=0.02,
    weight_decay=1e-4,
    average=0.999,
    standardise=False,  # positions are scaled to [-1, 1]
    act_temperature=0.0,
)

# Beginning of an environment's name -> what the laptop preset has for it.
LAPTOP: dict[str, tuple[DFPConfig, Schedule]] = {
    "pointmaze": (MAZE, MAZE_SCHEDULE),
    **dict.fromkeys(("cube-", "scene-", "puzzle-"), (ARM, ARM_SCHEDULE)),
    "can-": (ARM, CAN_SCHEDULE),
    "square-": (ARM, SQUARE_SCHEDULE),
    "lift-": (OTHER, LIFT_SCHEDULE),
    "pusht": (PUSHT, PUSHT_SCHEDULE),
}

# Settings that the laptop preset gives every method that has them. What defines a method (chunk, N of bfn, weights of
# losses) stays its own.
ALIKE = (
    *("gamma", "lr", "lr_end", "target_rate", "hidden", "batch", "standardise"),
    *("candidates", "top_k", "old_rate", "target_samples", "act_samples", "act_temperature"),
    *("history", "horizon", "trunk", "lr_end_offline", "weight_decay", "average"),
)
# Of these, what a method keeps: N of bfn; the single sample of methods without values, which rank several by density.
KEPT = {
    "bfn": ("target_samples", "act_samples"),
    **dict.fromkeys(CLONERS, ("act_samples", "act_temperature")),
}
PRESETS = ("laptop", "paper", "laptop-offline", "paper-offline")


def preset(name: str, method: str, env: str) -> tuple[AgentConfig, Schedule]:
    """The agent's settings and the schedule for a preset, a method and an environment.

    `laptop`: small networks and short phases; `paper`: offline, then online, as published; `laptop-offline` and
    `paper-offline`: pure offline RL (DFP B.2). Methods of the offline table have no online phase in any preset.
    Registered methods keep their own settings, and their schedule if they have one.

    Raises:
        ValueError: The message names the known methods or presets.
    """
    agent = defaults(method)
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; known presets: {', '.join(PRESETS)}")
    if method in METHODS:
        agent = paper_offline(method, env) if name == "paper-offline" else paper(method, env)
    schedule = PAPER
    if name.startswith("laptop"):
        like, schedule = next(
            (found for start, found in LAPTOP.items() if env.startswith(start)),
            (OTHER, ARM_SCHEDULE),
        )
        if method in METHODS:
            agent = laptop(method, agent, like)
            agent = pure_offline(agent) if name == "laptop-offline" else agent
    schedule = REGISTERED.get(method) or schedule
    if name.endswith("-offline") or method in OFFLINE | CLONING:
        schedule = replace(schedule, online_steps=0, online_start=0)
    return agent, schedule


def default_method(env: str) -> str:
    """The method of `python -m wgflow_rl.train --env ENV`."""
    return DEFAULT_PUSHT if env.startswith("pusht") else DEFAULT


def paper(method: str, env: str) -> AgentConfig:
    """A method with what its paper sets for the task, offline-to-online."""
    return _for_task(ROWS[method], TASKS, method, env)


def paper_offline(method: str, env: str) -> AgentConfig:
    """A method in pure offline RL, DFP with the settings of Table 8."""
    agent = paper(method, env)
    if isinstance(agent, DFPConfig):
        has_term = agent.lam > 0
        agent = _for_task(agent, OFFLINE_TASKS, method, env)
        agent = replace(agent, lam=agent.lam if has_term else 0.0)
    return pure_offline(agent)


def pure_offline(agent: AgentConfig) -> AgentConfig:
    """Single actions; DFP with the top-K term throughout and no best-of-N' (DFP B.2)."""
    if isinstance(agent, DFPConfig):
        return replace(agent, chunk=1, lam_offline=agent.lam, act_samples=1)
    return replace(agent, chunk=1)


def _for_task(agent: C, rows: Rows, method: str, env: str) -> C:
    for methods, beginnings, numbers, _ in rows:
        if method in methods and env.startswith(beginnings):
            agent = replace(agent, **numbers)
    return agent


def laptop(method: str, agent: AgentConfig, like: DFPConfig) -> AgentConfig:
    """A method at laptop size: DFP's numbers in whatever they have in common."""
    # the variants differ in their field and in having the top-K term or not
    if isinstance(agent, DFPConfig):
        lam = like.lam if agent.lam > 0 else 0.0
        return replace(like, field=agent.field, improve_field=agent.improve_field, lam=lam)
    if like.horizon:  # then the protocol of the task says how many actions are executed
        agent = replace(agent, chunk=like.chunk)
    known = {field.name for field in dataclasses.fields(agent)}
    given = known.intersection(ALIKE).difference(KEPT.get(method, ()))
    return replace(agent, **{name: getattr(like, name) for name in given})


def build(cfg: AgentConfig, **options: Any) -> Agent:
    """The agent of these settings.

    Args:
        options: obs_dim and action_dim, and any other keyword arguments of `Agent`.

    Raises:
        ValueError: If the settings are those of no method.
    """
    plugins.load_installed()
    if type(cfg) not in AGENTS:
        raise ValueError(
            f"no method has settings of the class {type(cfg).__name__}; presets.register adds one"
        )
    return AGENTS[type(cfg)](cfg, **options)
