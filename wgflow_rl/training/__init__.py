"""One training run: settings, the loop, rollouts, checkpoints and logs."""
