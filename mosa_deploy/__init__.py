"""One frozen vision transformer, hundreds of tasks, at the latency of the plain backbone.

Importing this package loads nothing heavy. `bundles`, `graphs`, `runtimes` and `client` never import torch; `adapters`
and `backbones` do. See ARCHITECTURE.md.
"""

__version__ = "0.1.0"
