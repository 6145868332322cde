"""Drifting Field Policy and its baselines, offline and online, on `wgflow`'s public names."""
