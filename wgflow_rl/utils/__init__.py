"""Helpers that know nothing of learning: the command line, files, threads."""
