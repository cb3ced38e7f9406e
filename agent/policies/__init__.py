"""Policies: who decides what an investigation does next, behind one protocol."""
