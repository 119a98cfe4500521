"""Crash, fuzz and soak checks. The tests run a short form of each; `scripts/trust_check.py` runs the long ones."""
