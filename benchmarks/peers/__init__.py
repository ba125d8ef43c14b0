"""Ours against the other CPU servers, each in an environment of its own under `target/peers`."""
