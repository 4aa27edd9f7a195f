"""Launchers of the compiled extensions, one package per backend.

They turn tensors into pointers and allocate outputs. They check nothing: the public functions did.
"""
