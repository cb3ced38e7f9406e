"""The explorer: a database and, where computing is allowed, its model as pages in a browser and as JSON."""
