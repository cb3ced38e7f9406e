"""The explorer: pages on a database, and requests that run its model."""
