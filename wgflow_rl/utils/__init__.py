"""Utilities: colours, command line, files, memory, signals."""
