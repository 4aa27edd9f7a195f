"""Launchers of the compiled extensions, a package per backend: they check nothing and turn tensors into pointers."""
