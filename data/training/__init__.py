"""Training dictionaries on a site's vectors: the arithmetic (`trainer`), and the run that feeds it (`run`)."""
