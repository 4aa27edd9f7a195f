"""Launchers of the compiled extensions: they check nothing and turn tensors into pointers."""
