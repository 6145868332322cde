"""Command lines of the benchmarks."""

import argparse


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the text at the top of a script, line by line."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
