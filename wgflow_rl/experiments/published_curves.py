"""Runs beside the published curves of their environments: which are comparable, a figure and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wgflow_rl.experiments.comparison import cell, escape, markdown
from wgflow_rl.experiments.figures import draw
from wgflow_rl.experiments.results import GENERATED, RunGroup, abbreviate

SHOWN = 6  # published curves that are drawn unless methods are named
ABOUT = (
    "Published curves are taken to be on the official data. A run is comparable if what it recorded, its data and the "
    f"steps of both phases, agrees with that. Without --data a run has {GENERATED}; a folder given with --data is "
    "taken to hold the official files unless our generator named it. What is not comparable has another panel. "
    "Means over seeds, of a file with seeds with our bootstrap interval, otherwise with the interval as published."
)


def differences(ours: RunGroup, curve: RunGroup) -> str:
    """Say why a run and a published curve are not comparable; "" if their data and steps are the same."""
    own, published = _steps(ours, curve.offline), _steps(curve, curve.offline)
    data = [f"{ours.data} against {curve.data}"] * ours.data.startswith(GENERATED)
    return ", ".join(data + [f"{own} against {published}"] * (own != published))


def _steps(group: RunGroup, known: int | None) -> str:
    """Steps of each phase; of both together if the end of the curve's offline phase is not known."""
    rows: Any = group.evaluations
    last = group.total or int(rows["step"].max())
    offline = min(group.offline or 0, last)
    phases = (last,) if known is None else (offline, last - offline)
    return " + ".join(map(abbreviate, phases)) + " steps"


def in_reach(groups: Sequence[RunGroup], methods: Sequence[str]) -> list[RunGroup]:
    """Leave out published curves of environments without runs, unless there are only published curves.

    Raises:
        ValueError: If one of the methods to draw has no curve in what remains.
    """
    ours = {group.env for group in groups if not group.source}
    groups = [group for group in groups if not group.source or group.env in ours or not ours]
    known = {name for group in groups if group.source for name in (group.method, group.name)}
    if missing := [name for name in methods if name not in known]:
        raise ValueError(
            f"--methods has {missing[0]!r}; there are published curves of {', '.join(sorted(known)) or 'none'}"
        )
    return groups


def section(groups: Sequence[RunGroup], methods: Sequence[str], out: Path | None) -> list[str]:
    """Per environment, draw runs and published curves into `out` and list their success at the end of each phase.

    `methods` are the curves to draw, QC of every file or "QC (qc)"; without any, those with the highest success.
    """
    found = sorted({group.env for group in groups if group.source})
    lines = ["## Published curves", "", ABOUT, ""] if found else []
    for env in found:
        ours = [group for group in groups if group.env == env and not group.source]
        curves = [group for group in groups if group.env == env and group.source]
        curves.sort(key=lambda group: (-_last(group), group.name))
        drawn = [each for each in curves if {each.method, each.name} & set(methods)]
        drawn = drawn if methods else curves[:SHOWN]
        lines += [f"### {escape(env)}", ""]
        if out is not None and drawn:
            draw(_panels(ours, drawn), out / f"published-{env}.png", title=env)
            chosen = "" if methods else ", those with the highest success at their last step"
            lines += [f"![{env}](published-{env}.png)", ""]
            lines += [f"Drawn: {len(drawn)} of {len(curves)} published curves{chosen}.", ""]
        header = ["method", "source", "steps", "after offline, %", "after online, %", "compared"]
        lines += markdown(header, [_row(group, curves) for group in (*ours, *curves)])
    return lines


def _last(group: RunGroup) -> float:
    """Mean success at the last step."""
    rows: Any = group.evaluations
    return float(rows["success"][rows["step"] == rows["step"].max()].mean())


def _row(group: RunGroup, curves: Sequence[RunGroup]) -> list[str]:
    ends = [cell(group, phase, interval=True) for phase in ("offline", "online")]
    reasons = {} if group.source else {(c.source, differences(group, c)): None for c in curves}
    verdicts = [
        f"{source}: {f'not comparable, {why}' if why else 'same data and steps'}"
        for source, why in reasons
    ]
    steps = _steps(group, group.offline)
    return [escape(group.name), escape(group.protocol), steps, *ends, escape("; ".join(verdicts))]


def _panels(ours: Sequence[RunGroup], drawn: Sequence[RunGroup]) -> dict[str, dict[str, RunGroup]]:
    """A panel per set of conditions of our runs, with the comparable curves; one for the other curves."""
    panels: dict[str, dict[str, RunGroup]] = {}
    rest = {curve.name: curve for curve in drawn}
    protocols = sorted({group.protocol for group in ours})
    for number, protocol in enumerate(protocols, start=1):
        mine = [group for group in ours if group.protocol == protocol]
        same = [curve for curve in drawn if not differences(mine[0], curve)]
        number = f" {number}" * (len(protocols) > 1)
        apart = f"ours{number}, {mine[0].data}: not comparable"
        title = f"ours{number} and published: same data and steps" if same else apart
        panels[title] = {group.name: group for group in (*mine, *same)}
        for curve in same:
            rest.pop(curve.name, None)
    return panels | ({f"published, {drawn[0].data}": rest} if rest else {})
