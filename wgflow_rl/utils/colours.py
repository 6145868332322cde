"""Colours of the figures."""

BLUE, INK, SHADE, RULE = "#2563a8", "#333a44", "#eef0f3", "#d9dde3"
