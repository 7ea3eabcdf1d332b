"""Run checkpoints and engines by one interface, for generation, latency and parity."""
