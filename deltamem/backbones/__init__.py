"""Backbones: their names, where they come from, and loading them. Importing this package loads no torch."""
