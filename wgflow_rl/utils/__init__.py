"""Helpers without machine learning: colours, command line, files, signals, threads."""
