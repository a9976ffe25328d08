"""How an epoch is run: one module per engine."""
