"""The launcher: turns flags into one plan, starts workers and router, restarts what dies, drains."""
