"""Scripted demonstrations of Lift, Can and Square: a plan for each task, and operators who carry it out well or badly.

A plan is a generator: it is sent scenes and yields where the gripper should be. An operator turns that into an action.
Operators differ as people do, in speed, steadiness and resolve, so that their demonstrations together are as mixed as
robomimic's multi-human data. Lengths are metres, angles radians, both in robosuite's world.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

STEP, TURN = 0.05, 0.5  # what a whole unit of an action asks for
GAIN = 3.0  # a distance asked for as it is would not be reached: the arm gives way to weight and friction
OPEN, CLOSED = -1.0, 1.0
DOWN = Rotation.from_euler("x", np.pi)  # the gripper points at the table, its fingers lie along y
HIGH = 0.1  # above an object, before it is grasped
GRIP = 6  # steps in which the fingers close


class Scene(NamedTuple):
    """Input of a plan: positions [3] and rotations of the gripper and of the task's object."""

    hand: np.ndarray
    hand_turn: Rotation
    thing: np.ndarray
    thing_turn: Rotation

    @staticmethod
    def of(observation: np.ndarray, suite: str) -> Scene:
        """The scene of an observation [S] of `envs.robomimic`."""
        pose = (
            observation[9:16] if suite == "lift" else observation[16:23]
        )  # after the pose relative to the gripper
        return Scene(
            observation[:3],
            Rotation.from_quat(observation[3:7]),
            pose[:3],
            Rotation.from_quat(pose[3:]),
        )


class Aim(NamedTuple):
    """Where the gripper should be, how far turned about the vertical, and its fingers."""

    place: np.ndarray
    turn: float
    fingers: float


Plan = Generator[Aim, Scene, None]
Part = Generator[Aim, Scene, Scene]


def lift(scene: Scene) -> Plan:
    """Grasp the cube from above and raise it; again if it slipped."""
    while True:
        turn = _least(_yaw(scene.thing_turn), np.pi / 2)  # along two of its sides
        scene = yield from _grasp(scene, lambda now: now.thing, turn)
        scene = yield from _go(scene, scene.hand + np.array([0, 0, 0.12]), turn, CLOSED)


def can(scene: Scene) -> Plan:
    """Grasp the can from above, carry it over the wall, let it go in its bin; again if it slipped."""
    bin_ = np.array([0.15, 0.34])  # in the far quarter of the second table, on the arm's side
    while True:
        axis = scene.thing_turn.apply([0, 0, 1])
        stands = abs(axis[2]) > 0.7
        turn = (
            0.0 if stands else _least(float(np.arctan2(axis[1], axis[0])), np.pi)
        )  # the fingers across it
        grip = np.array([0, 0, 0.02 if stands else 0.0])
        scene = yield from _grasp(scene, lambda now, grip=grip: now.thing + grip, turn)
        scene = yield from _go(scene, np.array([*scene.hand[:2], 1.0]), turn, CLOSED)
        if not _held(scene):
            continue
        scene = yield from _go(scene, np.array([*bin_, 1.0]), turn, CLOSED)
        for _ in range(GRIP):
            scene = yield Aim(scene.hand, turn, OPEN)
        scene = yield from _go(scene, np.array([*bin_, 1.1]), turn, OPEN)


def square(scene: Scene) -> Plan:
    """Grasp the nut by its handle, bring its hole over the square peg, let it down; again if it slipped."""
    peg = np.array([0.23, 0.1])
    while True:
        turn = _least(_yaw(scene.thing_turn), np.pi)  # the fingers close across the handle
        scene = yield from _grasp(
            scene, lambda now: now.thing + now.thing_turn.apply([0.054, 0, 0]), turn
        )
        scene = yield from _go(scene, np.array([*scene.hand[:2], 1.0]), turn, CLOSED)
        # The nut's sides along the peg's, its handle not away from the arm, which ends there.
        turns = [
            _least(side - _yaw(scene.thing_turn), 2 * np.pi)
            for side in (np.pi / 2, np.pi, -np.pi / 2)
        ]
        turn += min((by for by in turns if abs(turn + by) < 2), key=abs)
        while _held(scene) and scene.thing[2] > 0.93:
            off = peg - scene.thing[:2]
            there = np.linalg.norm(off) < 0.006 and _turned(scene, turn) < 0.2
            height = scene.hand[2] - 0.02 if there else 1.0
            scene = yield Aim(np.array([*(scene.hand[:2] + off), height]), turn, CLOSED)
        for _ in range(GRIP):
            scene = yield Aim(scene.hand, turn, OPEN)
        scene = yield from _go(scene, np.array([*scene.hand[:2], 1.0]), turn, OPEN)


PLANS: dict[str, Callable[[Scene], Plan]] = {"lift": lift, "can": can, "square": square}


def _grasp(scene: Scene, at: Callable[[Scene], np.ndarray], turn: float) -> Part:
    """Open above the place `at`, go down to it, close."""
    while (
        np.linalg.norm(gap := at(scene) + np.array([0, 0, HIGH]) - scene.hand) > 0.02
        or _turned(scene, turn) > 0.1
    ):
        scene = yield Aim(scene.hand + gap, turn, OPEN)
    while np.linalg.norm(gap := at(scene) - scene.hand) > 0.012:
        scene = yield Aim(scene.hand + gap, turn, OPEN)
    for _ in range(GRIP):
        scene = yield Aim(scene.hand, turn, CLOSED)
    return scene


def _go(scene: Scene, place: np.ndarray, turn: float, fingers: float) -> Part:
    """Move until `place` is near."""
    while np.linalg.norm(place - scene.hand) > 0.03:
        scene = yield Aim(place, turn, fingers)
    return scene


def _held(scene: Scene) -> bool:
    return float(np.linalg.norm(scene.thing - scene.hand)) < 0.09


def _yaw(turn: Rotation) -> float:
    """Angle about the vertical."""
    return float(turn.as_euler("zyx")[0])


def _least(angle: float, period: float) -> float:
    """The angle nearest to 0 that differs from `angle` by whole periods."""
    return (angle + period / 2) % period - period / 2


def _turned(scene: Scene, turn: float) -> float:
    return float((Rotation.from_euler("z", turn) * DOWN * scene.hand_turn.inv()).magnitude())


@dataclass(frozen=True)
class Operator:
    """How a plan is carried out."""

    name: str
    speed: float  # largest part of a whole action that is used to get somewhere
    noise: float  # standard deviation added to each of the six motions
    smoothness: float  # correlation of that noise from one step to the next
    pause: float  # probability of stopping to think, a step
    thought: int = 10  # longest pause, in steps

    def actions(self, plan: Plan, rng: np.random.Generator) -> Generator[np.ndarray, Scene, None]:
        """Actions [7] float32 in [-1, 1] for the scenes sent; send None first."""
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
                waiting = int(rng.integers(1, self.thought)) if rng.random() < self.pause else 0
                motion = self.towards(aim, scene) + shake
            scene = yield np.append(motion, aim.fingers).clip(-1, 1).astype(np.float32)
            if not waiting:
                aim = plan.send(scene)

    def towards(self, aim: Aim, scene: Scene) -> np.ndarray:
        """The motion [6] that brings the gripper nearer to its aim."""
        turn = Rotation.from_euler("z", aim.turn) * DOWN * scene.hand_turn.inv()
        motion = GAIN * np.concatenate([(aim.place - scene.hand) / STEP, turn.as_rotvec() / TURN])
        return motion.clip(-self.speed, self.speed)


OPERATORS = (
    Operator("clean", speed=0.7, noise=0.05, smoothness=0.0, pause=0.0),
    Operator("noisy", speed=0.7, noise=0.3, smoothness=0.7, pause=0.0),
    Operator("hesitant", speed=0.5, noise=0.15, smoothness=0.7, pause=0.03),
)
