"""Neuronaut."""
