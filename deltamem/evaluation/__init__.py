"""Measuring what a memory is worth: the same questions under several conditions, side by side."""
