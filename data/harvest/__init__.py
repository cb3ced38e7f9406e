"""One pass over a corpus: windows, activations, streaming statistics, shards that merge."""
