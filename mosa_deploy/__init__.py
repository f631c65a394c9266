"""One frozen vision transformer, hundreds of tasks, at the latency of the plain backbone.

Importing this package loads nothing heavy: `mosa_deploy.bundle`, `.preprocess` and `.runners` need numpy and Pillow
(and ONNX Runtime), the rooms that touch a model import torch and timm themselves. See ARCHITECTURE.md.
"""

__version__ = "0.1.0"
