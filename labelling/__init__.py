"""Labels batches of features: explain, choose, score, store."""
