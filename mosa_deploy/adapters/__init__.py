"""Adapters in torch: their styles, and their life from attaching to folding."""
