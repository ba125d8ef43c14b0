"""Trains the demo model that ships in `millrace_launcher/demo`; not part of the installed package."""
