"""The paper's figures with our runs, and the curves of all other runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wgflow_rl.experiments.comparison import MISSING, escape, matching, not_in_paper
from wgflow_rl.experiments.figures import draw
from wgflow_rl.experiments.results import RunGroup
from wgflow_rl.experiments.tables import FIGURES, NOT_DRAWN, TABLES, Figure


def section(groups: Sequence[RunGroup], numbers: Sequence[int], out: Path) -> list[str]:
    """Draw the figures of these tables and of all other runs; return lines of Markdown."""
    lines = ["## Figures", "", NOT_DRAWN, ""]
    drawn: set[int] = set()
    for figure in FIGURES:
        if figure.table not in numbers:
            continue
        found = _runs_of(figure, groups)
        if not found:
            lines += [f"Figure {figure.number}, {figure.title}: {MISSING}, no runs.", ""]
            continue
        drawn |= {id(group) for members in found.values() for group in members}
        title = f"As Figure {figure.number}: {figure.title}"
        published = [row.label for row in TABLES[figure.table].rows]
        lines += _draw_conditions(
            figure.panels,
            found,
            f"figure-{figure.number}",
            title,
            out,
            published,
            figure.online_only,
        )
    rest = [group for group in groups if id(group) not in drawn]
    stems: set[str] = set()
    for env in sorted({group.env for group in rest}):
        mine: dict[str, list[RunGroup]] = {}
        for group in rest:
            if group.env == env:
                mine.setdefault(group.name, []).append(group)
        stem = _unused(f"curves-{_slug(env)}", stems)
        lines += _draw_conditions({env: env}, mine, stem, "Offline, then online", out)
    return lines


def _runs_of(figure: Figure, groups: Sequence[RunGroup]) -> dict[str, list[RunGroup]]:
    """{label of a line: runs in the panels of the figure}, without labels that have none."""
    table = TABLES[figure.table]
    groups = [group for group in groups if group.env in figure.panels]
    found = {row.label: matching(table, row, groups) for row in table.rows}
    for label, members in not_in_paper(table, groups).items():
        found[label] = found.get(label, []) + members
    return {label: members for label, members in found.items() if members}


def _slug(name: str) -> str:
    """Reduce a name of unknown origin to letters, digits, points, underscores and dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100]


def _unused(stem: str, used: set[str]) -> str:
    """Return the stem of a file, with a number if it is used already."""
    found, number = stem, 1
    while found in used:
        number += 1
        found = f"{stem}-{number}"
    used.add(found)
    return found


def _lines(found: dict[str, list[RunGroup]], env: str, protocol: str) -> dict[str, RunGroup]:
    """The lines of a panel. A log named like our own runs, or like another log, has its source or a number."""
    lines: dict[str, RunGroup] = {}
    for label, groups in found.items():
        inside = [g for g in groups if g.env == env and (g.peer or g.protocol == protocol)]
        for group in sorted(inside, key=lambda g: g.peer):
            shared = group.peer and not all(other.peer for other in groups)
            lines[_unused(f"{label} (log)" if shared else label, set(lines))] = group
    return lines


def _draw_conditions(
    titles: dict[str, str],
    found: dict[str, list[RunGroup]],
    stem: str,
    title: str,
    out: Path,
    published: Sequence[str] | None = None,
    online_only: bool = False,
) -> list[str]:
    """Draw one figure per set of conditions, each with the logs of other code bases.

    Lines whose label is not one of those `published` are dashed.
    """
    mine = [group for groups in found.values() for group in groups]
    protocols = sorted({group.protocol for group in mine if not group.peer}) or [""]
    lines = []
    for index, protocol in enumerate(protocols):
        panels = {panel: _lines(found, env, protocol) for env, panel in titles.items()}
        labels = [label for lines in panels.values() for label in lines]
        dashed = [label for label in labels if published is not None and label not in published]
        path = out / f"{stem}{f'-{index + 1}' * (len(protocols) > 1)}.png"
        draw(panels, path, title=title, dashed=dashed, online_only=online_only)
        lines += [f"![{title}]({path.name})", "", escape(protocol) + "." * bool(protocol), ""]
        cut = {group.curve_is_cut: None for inside in panels.values() for group in inside.values()}
        lines += [f"- {escape(sentence)}" for sentence in cut if sentence]
        lines += [""] if any(cut) else []
    return lines
