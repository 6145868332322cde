"""Utilities: colours, command line, files, signals, threads."""
