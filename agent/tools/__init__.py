"""The experiments of an investigation: each tool chooses good inputs itself and brings its own control."""
