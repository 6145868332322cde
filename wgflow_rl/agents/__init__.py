"""One file per algorithm. An agent knows networks, batches and noise; it knows no buffer, environment or loop."""
