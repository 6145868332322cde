"""Exact references for tests: closed forms between Gaussians, and toy distributions with known densities."""

from wgflow.testing import gaussians, toy

__all__ = ["gaussians", "toy"]
