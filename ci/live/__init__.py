"""Live traffic against the training data, and what follows from it."""
