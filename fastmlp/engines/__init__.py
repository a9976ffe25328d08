"""How networks are trained: TrainState, and one module per engine that trains it."""
