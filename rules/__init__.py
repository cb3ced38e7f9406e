"""The rule language, its evaluator, its English, and the learner."""
