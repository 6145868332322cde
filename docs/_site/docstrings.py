"""Docstrings to reST. Here they are plain text, readable where they stand: a sentence, paragraphs, `names`, and
sections "Args:", "Returns:", "Raises:", whose text may begin on the same line. What is indented otherwise is shown
as it is.
"""

from __future__ import annotations

import re

import wgflow

SECTION = re.compile(r"(Args|Returns|Raises|Yields): *(.*)")
BULLET = re.compile(r"[*-] ")


def as_rst(lines: list[str]) -> list[str]:
    """The reST of a docstring's lines, unindented as `inspect.getdoc` gives them. Valid for any text."""
    out: list[str] = []
    rest = [line.rstrip() for line in lines]
    while rest:
        if not rest[0]:
            out.append(rest.pop(0))
        elif match := SECTION.fullmatch(rest[0]):
            rest.pop(0)
            out += _section(
                match[1], match[2], _take(rest, lambda line: not line or line.startswith(" "))
            )
        elif rest[0].startswith(" "):
            block = _take(rest, lambda line: not line or line.startswith(" "))
            out += ["", ".. code-block:: text", "", *("   " + line for line in block), ""]
        elif BULLET.match(rest[0]):
            first = rest.pop(0)
            more = _take(rest, lambda line: line.startswith("  "))
            out += ["", "- " + inline(" ".join([first[2:], *(line.strip() for line in more)])), ""]
        else:
            out.append(inline(rest.pop(0)))
    return out


def _take(rest: list[str], belongs) -> list[str]:
    taken = []
    while rest and belongs(rest[0]):
        taken.append(rest.pop(0))
    return taken


def _section(title: str, first: str, block: list[str]) -> list[str]:
    """A label, then its text, or for several arguments a list: an item for each line that is not indented further."""
    block = [line for line in block if line]
    if title != "Args" or not block:
        text = " ".join([first, *(line.strip() for line in block)]).strip()
        return ["", f"**{title}:** {inline(text)}", ""]
    margin = min(len(line) - len(line.lstrip()) for line in block)
    items: list[str] = [first] if first else []
    for line in block:
        if len(line) - len(line.lstrip()) == margin or not items:
            items.append(line.strip())
        else:
            items[-1] += " " + line.strip()
    return ["", f"**{title}:**", "", *(f"- {inline(item)}" for item in items), ""]


def inline(text: str) -> str:
    """Public names between backticks become links, the rest between backticks code; |x - y|, x_* mean themselves."""
    parts = re.split(r"(`[^`]+`)", text)
    for i, part in enumerate(parts):
        name = part.strip("`").removeprefix("wgflow.").removeprefix("wg.")
        if i % 2 == 0:
            plain = re.sub(r"([\\*|_`])", r"\\\1", part)
            parts[i] = re.sub(
                r"(?<!\w)\\\*(\w[\w -]*)\\\*(?!\w)", r"*\1*", plain
            )  # *emphasis*, not a * b * c
        elif name in wgflow.__all__:
            parts[i] = f":py:obj:`~wgflow.{name}`\\ "
        else:
            parts[i] = f":code:`{part.strip('`')}`\\ ".replace("\\", "\\\\").replace("\\\\ ", "\\ ")
    return "".join(parts).rstrip("\\ ")
