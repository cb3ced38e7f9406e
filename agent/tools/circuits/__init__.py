"""Experiments on behaviours: nodes and sets of nodes, cut, kept and restored."""
