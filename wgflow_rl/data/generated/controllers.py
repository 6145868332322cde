"""Scripted policies for Lift, Can and Square: one plan per task, several operators.

A plan is a generator that receives scenes and yields target poses of the gripper; an operator turns
targets into actions. Operators differ in speed, noise and pauses, so that their demonstrations
together are multimodal like robomimic's multi-human data. Lengths are in metres and angles in
radians, both in robosuite's world frame.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

STEP, TURN = 0.05, 0.5  # translation (m) and rotation (rad) of an action of 1
GAIN = 3.0  # proportional gain; at 1 the arm stops short, because of weight and friction
OPEN, CLOSED = -1.0, 1.0
DOWN = Rotation.from_euler("x", np.pi)  # the gripper points at the table, its fingers along y
HIGH = 0.1  # height above an object from which a grasp starts
GRIP = 6  # steps for opening or closing the fingers
PAUSE = 10  # steps of the longest pause


class Scene(NamedTuple):
    """Positions [3] and rotations of the gripper and of the task's object."""

    hand: np.ndarray
    hand_rotation: Rotation
    object_position: np.ndarray
    object_rotation: Rotation

    @staticmethod
    def from_observation(observation: np.ndarray, suite: str) -> Scene:
        """Read the scene from an observation [S] of `envs.robomimic`."""
        # after the pose relative to the gripper
        pose = observation[9:16] if suite == "lift" else observation[16:23]
        return Scene(
            observation[:3],
            Rotation.from_quat(observation[3:7]),
            pose[:3],
            Rotation.from_quat(pose[3:]),
        )


class Aim(NamedTuple):
    """Target of the gripper: position [3], rotation about the vertical, OPEN or CLOSED."""

    position: np.ndarray
    turn: float
    fingers: float


Plan = Generator[Aim, Scene, None]
Part = Generator[Aim, Scene, Scene]


def lift(scene: Scene) -> Plan:
    """Grasp the cube from above and raise it; repeat if it slipped."""
    while True:
        turn = _wrap(_yaw(scene.object_rotation), np.pi / 2)  # fingers parallel to two of its sides
        scene = yield from _grasp(scene, lambda now: now.object_position, turn)
        scene = yield from _go(scene, scene.hand + np.array([0, 0, 0.12]), turn, CLOSED)


def can(scene: Scene) -> Plan:
    """Grasp the can from above and release it in its bin; repeat if it slipped."""
    bin_ = np.array([0.15, 0.34])  # the can's quarter of the second table
    while True:
        axis = scene.object_rotation.apply([0, 0, 1])
        stands = abs(axis[2]) > 0.7
        # Close the fingers across a can that lies on its side.
        turn = 0.0 if stands else _wrap(float(np.arctan2(axis[1], axis[0])), np.pi)
        grip = np.array([0, 0, 0.02 if stands else 0.0])
        scene = yield from _grasp(scene, lambda now, grip=grip: now.object_position + grip, turn)
        scene = yield from _go(scene, np.array([*scene.hand[:2], 1.0]), turn, CLOSED)
        if not _held(scene):
            continue
        scene = yield from _go(scene, np.array([*bin_, 1.0]), turn, CLOSED)
        for _ in range(GRIP):
            scene = yield Aim(scene.hand, turn, OPEN)
        scene = yield from _go(scene, np.array([*bin_, 1.1]), turn, OPEN)


def square(scene: Scene) -> Plan:
    """Grasp the nut by its handle and lower its hole over the peg; repeat if it slipped."""
    peg = np.array([0.23, 0.1])
    while True:
        turn = _wrap(_yaw(scene.object_rotation), np.pi)  # fingers across the handle
        scene = yield from _grasp(
            scene, lambda now: now.object_position + now.object_rotation.apply([0.054, 0, 0]), turn
        )
        scene = yield from _go(scene, np.array([*scene.hand[:2], 1.0]), turn, CLOSED)
        # Align the nut's sides with the peg's, with the handle on the side that the arm can reach.
        turns = [
            _wrap(side - _yaw(scene.object_rotation), 2 * np.pi)
            for side in (np.pi / 2, np.pi, -np.pi / 2)
        ]
        turn += min((by for by in turns if abs(turn + by) < 2), key=abs)
        while _held(scene) and scene.object_position[2] > 0.93:
            off = peg - scene.object_position[:2]
            there = np.linalg.norm(off) < 0.006 and _angle_error(scene, turn) < 0.2
            height = scene.hand[2] - 0.02 if there else 1.0
            scene = yield Aim(np.array([*(scene.hand[:2] + off), height]), turn, CLOSED)
        for _ in range(GRIP):
            scene = yield Aim(scene.hand, turn, OPEN)
        scene = yield from _go(scene, np.array([*scene.hand[:2], 1.0]), turn, OPEN)


PLANS: dict[str, Callable[[Scene], Plan]] = {"lift": lift, "can": can, "square": square}


def _grasp(scene: Scene, at: Callable[[Scene], np.ndarray], turn: float) -> Part:
    """Open the fingers above the position `at`, descend to it and close them."""
    while (
        np.linalg.norm(gap := at(scene) + np.array([0, 0, HIGH]) - scene.hand) > 0.02
        or _angle_error(scene, turn) > 0.1
    ):
        scene = yield Aim(scene.hand + gap, turn, OPEN)
    while np.linalg.norm(gap := at(scene) - scene.hand) > 0.012:
        scene = yield Aim(scene.hand + gap, turn, OPEN)
    for _ in range(GRIP):
        scene = yield Aim(scene.hand, turn, CLOSED)
    return scene


def _go(scene: Scene, position: np.ndarray, turn: float, fingers: float) -> Part:
    """Move until the gripper is within 3 cm of `position`."""
    while np.linalg.norm(position - scene.hand) > 0.03:
        scene = yield Aim(position, turn, fingers)
    return scene


def _held(scene: Scene) -> bool:
    """Return True if the object is close enough to the gripper to be in its grasp."""
    return float(np.linalg.norm(scene.object_position - scene.hand)) < 0.09


def _yaw(turn: Rotation) -> float:
    """Rotation about the vertical axis."""
    return float(turn.as_euler("zyx")[0])


def _wrap(angle: float, period: float) -> float:
    """Reduce an angle modulo `period` to [-period / 2, period / 2)."""
    return (angle + period / 2) % period - period / 2


def _angle_error(scene: Scene, turn: float) -> float:
    """Angle between the gripper's orientation and the target."""
    return float((Rotation.from_euler("z", turn) * DOWN * scene.hand_rotation.inv()).magnitude())


@dataclass(frozen=True)
class Operator:
    """Proportional controller with autocorrelated noise and pauses, which carries out a plan."""

    name: str
    speed: float  # largest component of a motion, as a fraction of the action range
    noise: float  # standard deviation of the noise on each of the six motion components
    smoothness: float  # lag-1 autocorrelation of that noise
    pause: float  # probability per step that a pause starts

    def actions(self, plan: Plan, rng: np.random.Generator) -> Generator[np.ndarray, Scene, None]:
        """Coroutine: receives scenes, yields actions [7] float32 in [-1, 1].

        Prime it with `next`.
        """
        scene = yield  # type: ignore[misc]
        aim = next(plan)
        shake, waiting = np.zeros(6), 0
        while True:
            fresh = np.sqrt(1 - self.smoothness**2) * self.noise * rng.normal(size=6)
            shake = self.smoothness * shake + fresh
            if waiting:
                waiting -= 1
                motion = 0.2 * shake
            else:
                waiting = int(rng.integers(1, PAUSE)) if rng.random() < self.pause else 0
                motion = self.motion_towards(aim, scene) + shake
            scene = yield np.append(motion, aim.fingers).clip(-1, 1).astype(np.float32)
            if not waiting:
                aim = plan.send(scene)

    def motion_towards(self, aim: Aim, scene: Scene) -> np.ndarray:
        """Motion [6] proportional to the pose error of the gripper, clipped to `speed`."""
        turn = Rotation.from_euler("z", aim.turn) * DOWN * scene.hand_rotation.inv()
        motion = GAIN * np.concatenate(
            [(aim.position - scene.hand) / STEP, turn.as_rotvec() / TURN]
        )
        return motion.clip(-self.speed, self.speed)


OPERATORS = (
    Operator("clean", speed=0.7, noise=0.05, smoothness=0.0, pause=0.0),
    Operator("noisy", speed=0.7, noise=0.3, smoothness=0.7, pause=0.0),
    Operator("hesitant", speed=0.5, noise=0.15, smoothness=0.7, pause=0.03),
)
