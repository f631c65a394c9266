"""Runtimes that run the graphs, behind one protocol."""
