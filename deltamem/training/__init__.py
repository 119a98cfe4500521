"""Training an adapter: episodes, their batches, the starting point, the objective and the loop."""
