"""The causal verbs: one module per verb or pair of verbs."""
