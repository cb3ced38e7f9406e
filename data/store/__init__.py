"""The SQLite file: its schema, everything that reads or writes it, import, export, merge."""
