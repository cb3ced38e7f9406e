"""Causal tools: interventions on the subject, what they change, and how its parts bring about its answers."""
