"""The runtimes that run graphs, behind one protocol."""
