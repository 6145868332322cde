"""Robomimic's Lift, Can and Square on robosuite 1.5, with low-dimensional observations.

The conventions are those of Q-chunking and DFP. An observation is the concatenation of the four
KEYS. Reward, terminated and success describe the state *after* the action, as in robomimic's files
(OGBench: the state before it): reward 0 and the end of the episode on success, -1 otherwise, with a
time limit of 300 or 400 steps.

A reset places objects and arm in the same model. robosuite's default, a hard reset, compiles a new
model, which takes far longer and varies the cube's size by up to a tenth; public implementations of
the protocol use soft resets too. All environments have the same model, so an episode is a function
of (seed, actions).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from wgflow_rl.envs.episodes import SingleTask
from wgflow_rl.envs.name import Name
from wgflow_rl.envs.rendering import importing_simulators
from wgflow_rl.utils.cli import UserError

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
TASKS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}  # name in robosuite
LIMITS = {"lift": 300, "can": 300, "square": 400}  # time limits in steps
NAMES = {
    f"{suite}-mh-low_dim": Name("robomimic", suite, f"{suite}-mh-low_dim", "mh") for suite in TASKS
}
INSTALL = 'pip install -e ".[robomimic]" -c constraints.txt'


# The arm's controller in robomimic's files: six numbers in [-1, 1] move the gripper by up to 5 cm
# and 0.5 rad per axis; the seventh closes (+1) or opens (-1) it.
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


def env_args(suite: str) -> dict[str, Any]:
    """The attribute `env_args` of a robomimic file that describes our "lift", "can" or "square"."""
    return {
        "env_name": TASKS[suite],
        "env_version": "1.5.2",
        "type": 1,  # robomimic's code of robosuite
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
            "lite_physics": True,  # bit-identical states in all three tasks, in two thirds of the time
        },
    }


class Robosuite(gymnasium.Env):
    """A robosuite task as a gymnasium environment, with the conventions of this module.

    Args:
        suite: "lift", "can" or "square".
        render_mode: None, or "rgb_array" for images of the camera in front of the robot.
        width: width of an image in pixels.
        height: height of an image in pixels.
    """

    def __init__(
        self,
        suite: str,
        *,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 320,
    ) -> None:
        robosuite, args = import_robosuite(), env_args(suite)
        chosen = {
            "has_offscreen_renderer": render_mode is not None,
            "renderer": "mujoco",  # the default opens a viewer at every reset
            "hard_reset": False,
            "seed": 0,  # seed of the model, equal in all environments
        }
        self.render_mode, self.width, self.height = render_mode, width, height
        self.simulator: Any = robosuite.make(args["env_name"], **args["env_kwargs"] | chosen)
        size = len(self._read())
        self.observation_space = Box(-np.inf, np.inf, shape=(size,), dtype=np.float64)
        self.action_space = Box(-1.0, 1.0, shape=(self.simulator.action_dim,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:  # in place: the position samplers refer to this generator
            self.simulator.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.simulator.reset()
        # Forced: relative poses are computed from the last update of the sensors, which a reset
        # clears.
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
        """Render a [height, width, 3] uint8 image.

        Without a display or MUJOCO_GL, GL raises its own errors.
        """
        picture = self.simulator.sim.render(
            width=self.width, height=self.height, camera_name="agentview"
        )
        return picture[::-1]

    def close(self) -> None:
        self.simulator.close()

    def _read(self) -> np.ndarray:
        return _join(self.simulator._get_observations(force_update=True))


def _join(observations: Mapping[str, np.ndarray]) -> np.ndarray:
    own_names = ["object-state" if key == "object" else key for key in KEYS]  # robosuite's
    return np.concatenate([observations[name] for name in own_names])


def make(env: str, **options: Any) -> SingleTask:
    """Make one of `NAMES`: see `envs.make`.

    `options`: render_mode, width, height of `Robosuite`.
    """
    suite = NAMES[env].suite
    inner = Robosuite(suite, **options)
    return SingleTask(TimeLimit(inner, max_episode_steps=LIMITS[suite]), env)


def import_robosuite() -> Any:
    """Import robosuite with its log limited to errors.

    Raises:
        RuntimeError: The message names the extra.
    """
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    try:
        with importing_simulators():
            import robosuite
    except ModuleNotFoundError as error:
        raise UserError(
            f"lift, can and square need the extra robomimic ({error}): {INSTALL}"
        ) from error
    return robosuite


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
