"""Helpers without machine learning: command line, files, signals, threads."""
