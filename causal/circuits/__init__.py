"""Circuits: the nodes that bring a behaviour about, found, pruned and tested."""
