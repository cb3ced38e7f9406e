"""What comes of an experiment as rows that JSON can hold: those that the causal commands print with --json."""
