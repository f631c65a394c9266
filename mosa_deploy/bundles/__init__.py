"""The contracts on disk and on the wire, without torch and onnx."""
