"""Traced backbones as ONNX graphs, and what tasks put into them, with numpy alone."""
