"""Agents in environments: worlds (`envs`), play, collect, evaluate, metrics."""
