"""Conversations with questions about them: made up or read from files, laid out as tensors, run through a model."""
