"""Bundles in a repository of the Hugging Face hub, or in a folder in its place: `mosa push` and `mosa pull`."""
