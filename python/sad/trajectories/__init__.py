"""Segments trajectories into spans, tokenizes them once, and labels their tokens."""
