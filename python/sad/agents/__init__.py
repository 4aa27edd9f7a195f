"""Agents in environments: rollouts, collection of trajectories, and evaluation."""
