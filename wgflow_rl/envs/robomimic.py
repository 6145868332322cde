"""Robomimic's Lift, Can and Square on robosuite 1.5: the tasks of its multi-human, low-dimensional data.

The conventions are those of Q-chunking and DFP. An observation is the four KEYS laid end to end, as simulated. Reward,
terminated and success describe the state *after* the action, as the rewards in robomimic's files do (OGBench's describe
the state before it): reward 0 and the end of the episode on success, -1 otherwise, at most 300 or 400 steps.

A reset places objects and arm anew in the same model. robosuite would compile another one, whose cube differs by up to
a tenth in size and which takes far longer; public code of the protocol resets in this way too. Two environments have
the same model, so an episode is a function of (seed, actions).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from wgflow_rl.envs.episodes import SingleTask
from wgflow_rl.utils.cli import UserError

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
TASKS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}  # name in robosuite
LIMITS = {"lift": 300, "can": 300, "square": 400}  # steps of an episode
INSTALL = 'pip install -e ".[robomimic]" -c constraints.txt'
_PATTERN = re.compile(r"(?P<suite>lift|can|square)-mh-low_dim")
_OBJECT = "object-state"  # robosuite's name for what robomimic's files call "object"

# The arm's controller of robomimic's files: six numbers in [-1, 1] send the gripper up to 5 cm and .5 rad an axis from
# where it is; the seventh closes it (+1) or opens it.
CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_type": "delta",
    "input_ref_frame": "base",
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}


@dataclass(frozen=True)
class Name:
    """A parsed environment name."""

    source: ClassVar[str] = "robomimic"
    suite: str  # "lift", "can" or "square"
    kind: ClassVar[str] = "mh"

    @property
    def dataset(self) -> str:
        """Name of the task's data."""
        return f"{self.suite}-mh-low_dim"


def names() -> list[str]:
    """Every name: lift-mh-low_dim, can-mh-low_dim, square-mh-low_dim."""
    return [Name(suite).dataset for suite in TASKS]


def parse(env: str) -> Name | None:
    """The task of a name; None if it is not one of `names()`."""
    match = _PATTERN.fullmatch(env)
    return Name(match["suite"]) if match else None


def env_args(suite: str) -> dict[str, Any]:
    """Metadata of "lift", "can" or "square" as a robomimic file stores them, for the environment built here."""
    return {
        "env_name": TASKS[suite],
        "env_version": "1.5.2",
        "type": 1,  # robomimic's number for robosuite
        "env_kwargs": {
            "robots": ["Panda"],
            "controller_configs": {"type": "BASIC", "body_parts": {"right": CONTROLLER}},
            "control_freq": 20,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "use_object_obs": True,
            "reward_shaping": False,
            "ignore_done": True,
            "camera_depths": False,
            "camera_heights": 84,
            "camera_widths": 84,
            "lite_physics": True,  # the same states bit for bit in all three tasks, in two thirds of the time
        },
    }


def arm_controller(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's controller in a file's `env_args`, from before robosuite 1.5 or since; what is not said is the default.

    1.5 overlooks `control_delta`, which is now called `input_type`.
    """
    found = args["env_kwargs"]["controller_configs"]
    found = found[0] if isinstance(found, list) else found
    arm = (
        dict(found["body_parts"].get("right") or found["body_parts"]["arms"]["right"])
        if "body_parts" in found
        else dict(found)
    )
    if "control_delta" in arm:
        arm["input_type"] = "delta" if arm.pop("control_delta") else "absolute"
    return CONTROLLER | arm


def modern(args: Mapping[str, Any]) -> dict[str, Any]:
    """A file's `env_args` as robosuite 1.5 understands them: its environment's arguments.

    Up to 1.4 a controller was the arm's alone; 1.5 wants one for each part of the body and ends with "OSC_POSE
    controller is specified, but not imported or loaded" otherwise.
    """
    from robosuite.controllers.composite.composite_controller_factory import (
        refactor_composite_controller_config,
    )

    kwargs = dict(args["env_kwargs"])
    robots = kwargs["robots"]
    robot = robots if isinstance(robots, str) else robots[0]
    if "body_parts" not in kwargs["controller_configs"]:
        kwargs.setdefault(
            "lite_physics", False
        )  # what robosuite asks for with data from before 1.5
    new = refactor_composite_controller_config(arm_controller(args), robot, ["right"])
    return kwargs | {"controller_configs": new}


class Robosuite(gymnasium.Env):
    """One of robosuite's tasks as a gymnasium environment, with the conventions of this file.

    Args:
        args: a file's `env_args`, of any version; `env_args("lift")` are ours.
        render_mode: None, or "rgb_array": `render` is then the picture of the camera before the robot.
    """

    def __init__(
        self,
        args: Mapping[str, Any],
        *,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 320,
    ) -> None:
        chosen = {
            "has_renderer": False,
            "has_offscreen_renderer": render_mode is not None,
            "renderer": "mujoco",  # the other one opens a viewer at every reset
            "use_camera_obs": False,
            "use_object_obs": True,
            "ignore_done": True,
            "hard_reset": False,
            "seed": 0,  # of the model: every environment has the same
        }
        robosuite = package()
        self.render_mode, self.width, self.height = render_mode, width, height
        self.simulator: Any = robosuite.make(args["env_name"], **{**modern(args), **chosen})
        size = len(self._read())
        self.observation_space = Box(-np.inf, np.inf, shape=(size,), dtype=np.float64)
        self.action_space = Box(-1.0, 1.0, shape=(self.simulator.action_dim,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:  # in place: the samplers of positions hold this very generator
            self.simulator.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.simulator.reset()
        # Poses relative to the gripper are made of the poses seen at the last update, of which a reset leaves none.
        return self._read(), {"success": False}

    def step(self, action: Any):
        observations, reward, _, info = self.simulator.step(np.asarray(action, dtype=np.float64))
        success = bool(reward > 0)
        return (
            _join(observations),
            float(success) - 1.0,
            success,
            False,
            {**info, "success": success},
        )

    def render(self) -> np.ndarray:
        """[height, width, 3] uint8 picture. Raises: whatever the GL platform raises without a screen or MUJOCO_GL."""
        picture = self.simulator.sim.render(
            width=self.width, height=self.height, camera_name="agentview"
        )
        return picture[::-1]

    def close(self) -> None:
        self.simulator.close()

    def _read(self) -> np.ndarray:
        return _join(self.simulator._get_observations(force_update=True))


def _join(observations: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([observations[_OBJECT if key == "object" else key] for key in KEYS])


def make(env: str, **options: Any) -> SingleTask:
    """One of `names()`; see `envs.make`. `options`: render_mode, width, height of `Robosuite`."""
    name = parse(env)
    assert name is not None
    inner = Robosuite(env_args(name.suite), **options)
    return SingleTask(TimeLimit(inner, max_episode_steps=LIMITS[name.suite]), env)


def package() -> Any:
    """robosuite, without the advice it logs. Raises: RuntimeError naming the extra."""
    logging.getLogger("robosuite_logs").addFilter(_serious)
    try:
        import robosuite
    except ModuleNotFoundError as error:
        raise UserError(
            f"lift, can and square need the extra robomimic ({error}): {INSTALL}"
        ) from error
    return robosuite


def _serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
