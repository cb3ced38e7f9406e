"""Experiments on what a feature does: ablation, steering, what it reads and what reads it."""
