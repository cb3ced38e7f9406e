"""The explorer in a browser, and tools for assistants: two ways to the same operations on a database."""
