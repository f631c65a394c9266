"""Tune adapters for a task, evaluate them, and pre-train the embedded backbone."""
