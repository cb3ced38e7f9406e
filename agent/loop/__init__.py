"""Investigations: rival hypotheses about one target, what each predicts, experiments, and verdicts that code gives."""
