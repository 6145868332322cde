"""Parsed names of environments."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """A parsed environment name."""

    source: str  # key of `envs.SOURCES`
    suite: str  # "cube-single", "lift", "pusht"; of a registered environment, its whole name
    dataset: str  # stem of its data files, which environments may share
    kind: str = (
        ""  # "play" or "navigate" (OGBench), "mh" (robomimic), "state" or "keypoints" (PushT)
    )
