"""Launchers of `csrc/cpu`."""
