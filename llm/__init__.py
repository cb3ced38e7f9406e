"""Language models that explain, simulate and judge: clients, the log of their calls, and how code asks them."""
