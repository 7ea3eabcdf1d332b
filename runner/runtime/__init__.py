"""Running what was made, whatever it is: one small interface behind generation, latency and parity."""
