"""PushT: a disc pushes a T-shaped block onto a goal pose, under the protocol of Diffusion Policy.

The simulator is gym-pusht's (Chi et al., "Diffusion Policy", 2023). `pusht` observes the agent, the
block and the angle; `pusht-keypoints` nine points of the block and the agent. Positions are scaled
from [0, 512] px to [-1, 1], actions likewise; an action is the target of the agent's PD controller.

The published reward describes the state *after* the action: min(coverage / .95, 1), where coverage
is the part of the goal's area that the block covers. `info["score"]` is the largest one so far;
published tables report its mean over episodes (not a success rate), and seeds 100000 to 100049 give
their starts. An episode ends when coverage exceeds .95, which is success, or after 300 steps.

The environment's reward is the published one minus 1, in [-1, 0]: with a positive reward, an agent
would gain by hovering below the coverage that ends the episode. OGBench's rewards follow the same
convention.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from wgflow_rl.envs.episodes import SingleTask
from wgflow_rl.envs.name import Name
from wgflow_rl.utils.cli import UserError

NAMES = {
    "pusht": Name("pusht", "pusht", "pusht", "state"),
    "pusht-keypoints": Name("pusht", "pusht", "pusht", "keypoints"),
}
LIMIT = 300  # steps
GOAL = (256.0, 256.0, np.pi / 4)  # x, y in px, angle
INSTALL = 'pip install "gym-pusht>=0.1.8,<0.2" "pymunk>=6.6,<7"'

# Block points of the official data in body coordinates (px): R(angle)^T (keypoint - position), the
# mean over frames in which the block rests, rounded to 1e-4. (A moving block's keypoints are stored
# about one physics step later than its state, up to 2 px away.)
KEYPOINTS = np.array(
    [
        [9.2698, -60.9835, 60.9128, -0.2705, -14.0649, 39.0027, -39.9664, -16.8243, 23.5415],  # x
        [90.0410, -1.1867, -1.3934, 25.5436, 122.8159, 32.8574, 32.7297, 62.8632, -1.7003],  # y
    ]
).T

# A state that the task's symmetry (x, y) -> (512 - y, 512 - x) maps to itself: the agent stands at
# the stem's end and has to reach the bar, and the ways left and right of the block are equally
# good. Of the 13 official demonstrations that come near, 6 pass on one side and 7 on the other.
SYMMETRIC_START = (142.9, 369.1, 298.4, 213.6, np.pi / 4)


def scale(px: Any) -> np.ndarray:
    """Map positions from [0, 512] px to [-1, 1]."""
    return np.asarray(px) / 256 - 1


def unscale(position: Any) -> np.ndarray:
    """Map positions from [-1, 1] to [0, 512] px: the inverse of `scale`."""
    return (np.asarray(position) + 1) * 256


def observe(state: np.ndarray, kind: str) -> np.ndarray:
    """Observations [..., 6] ("state") or [..., 20] ("keypoints") of states [..., 5].

    Args:
        state: agent x, y, block x, y in px and the block's angle, as in the official data.
        kind: "state" gives agent, block, cos and sin of the angle; "keypoints" gives the nine
            points in world coordinates, then the agent.
    """
    agent, block, angle = state[..., :2], state[..., 2:4], state[..., 4:]
    cos, sin = np.cos(angle), np.sin(angle)
    if kind == "state":
        return np.concatenate([scale(state[..., :4]), cos, sin], axis=-1)
    x, y = KEYPOINTS.T
    points = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) + block[..., None, :]
    return scale(np.concatenate([points.reshape(*state.shape[:-1], -1), agent], axis=-1))


class PushT(gymnasium.Env):
    """PushT with the conventions of this module.

    `reset(seed=)` starts where Diffusion Policy's evaluation does. `reset(options={"state": s})`
    starts in the state s (see `observe`). Both let one physics step pass, which moves the block
    only where it overlaps a wall or the agent. `info["state"]` is the state of the simulator.

    Args:
        kind: observation, "state" or "keypoints".
        render_mode: None, or "rgb_array"; `render` works with both.
        width: width of an image in pixels.
        height: height of an image in pixels.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}  # 10 steps per second

    def __init__(
        self,
        kind: str = "state",
        *,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 320,
    ) -> None:
        self.kind, self.render_mode = kind, render_mode
        self.width, self.height = width, height
        self.simulator: Any = import_gym_pusht().PushTEnv(
            render_mode="rgb_array", visualization_width=512, visualization_height=512
        )
        size = observe(np.zeros(5), kind).size
        self.observation_space = Box(-np.inf, np.inf, shape=(size,), dtype=np.float64)
        self.action_space = Box(-1.0, 1.0, shape=(2,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        simulator, self.score = self.simulator, 0.0
        simulator._setup()  # new bodies, at rest
        simulator._last_action = None  # drawn as a cross
        if options and "state" in options:
            state = _checked(options["state"])
            simulator.agent.position = tuple(state[:2])
            # The angle first: a rotation about the centre of gravity moves `position`, which is the
            # body's origin, 45 px away.
            simulator.block.angle = state[4]
            simulator.block.position = tuple(state[2:4])
            simulator.space.step(simulator.dt)
        else:
            seed = int(self.np_random.integers(2**32)) if seed is None else seed % 2**32
            draw = np.random.RandomState(seed)
            xy = [*draw.randint(50, 450, size=2), *draw.randint(100, 400, size=2)]
            # The published evaluation sets the position before the angle, and so does gym-pusht.
            # Its starts are therefore rotated about the centre of gravity at (x, y) + (0, 45).
            simulator._set_state(np.array([*xy, draw.randn() * 2 * np.pi - np.pi]))
        return self._answer(success=False, coverage=simulator._get_coverage())

    def step(self, action: Any):
        target = unscale(np.asarray(action, dtype=np.float64))
        _, published, terminated, _, info = self.simulator.step(target)
        self.score = max(self.score, float(published))
        obs, info = self._answer(success=bool(terminated), coverage=info["coverage"])
        return obs, float(published) - 1, bool(terminated), False, info

    def render(self) -> np.ndarray:
        """Render a [height, width, 3] uint8 image of goal, block, agent and target (a cross)."""
        import cv2  # a dependency of gym-pusht

        # Resized here: gym-pusht misplaces the cross unless the image is square, and fails below 96 px.
        size = (self.width, self.height)
        return cv2.resize(self.simulator.render(), size, interpolation=cv2.INTER_AREA)

    def close(self) -> None:
        self.simulator.close()

    def _answer(self, *, success: bool, coverage: float) -> tuple[np.ndarray, dict[str, Any]]:
        state = self.simulator.get_obs()  # agent x, y, block x, y, angle in [0, 2 pi)
        info = {"success": success, "score": self.score, "coverage": float(coverage)}
        return observe(state, self.kind), info | {"state": state}


def _checked(state: Any) -> np.ndarray:
    state = np.asarray(state, dtype=np.float64)
    if state.shape != (5,) or not np.isfinite(state).all():
        raise ValueError(
            f'options["state"] is {state}; wanted five finite numbers: agent x, y, block x, y in px '
            "and the block's angle in radians."
        )
    return state


def make(env: str, **options: Any) -> SingleTask:
    """Make one of `NAMES`: see `envs.make`.

    `options`: render_mode, width, height of `PushT`.
    """
    inner = PushT(NAMES[env].kind, **options)
    return SingleTask(TimeLimit(inner, max_episode_steps=LIMIT), env)


def import_gym_pusht() -> ModuleType:
    """Import gym-pusht's environment, without a display unless SDL_VIDEODRIVER names one.

    Raises:
        UserError: The message names the missing package, or both versions, and the remedy.
    """
    try:
        installed = version("gym-pusht"), version("pymunk")
    except PackageNotFoundError as error:
        raise UserError(f"pusht needs gym-pusht and pymunk ({error}): {INSTALL}") from error
    if not (installed[0].startswith("0.1.") and installed[1].startswith("6.")):
        raise UserError(
            f"pusht needs gym-pusht 0.1 and pymunk 6, but gym-pusht {installed[0]} and pymunk "
            f"{installed[1]} are installed: {INSTALL}"
        )
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pkg_resources")  # imported by pygame
        try:
            from gym_pusht.envs import pusht
        except ImportError as error:
            raise UserError(
                f"gym-pusht cannot be imported ({error}): {INSTALL}; without libGL.so.1 also apt install libgl1"
            ) from error
    return pusht
