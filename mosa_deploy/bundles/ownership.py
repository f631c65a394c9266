"""What a task owns: the tensors of its model that are tuned and that its bundle holds. The others are the backbone's.

    mosa, adapter, mosl, lora,
    repadapter, ssf              adapters and head
    linear, attentive            head, and the query of an attentive probe
    bitfit                       every bias (arXiv 2106.10199), and the head
    full                         everything

A bias is what timm calls `bias`, or `q_bias` and `v_bias` in a DINOv3: those of norms are among them, LayerScale and a
Swin's tables of positions are not.
"""

from mosa_deploy.bundles.adapter_config import Method
from mosa_deploy.bundles.probe_features import QUERY
from mosa_deploy.bundles.topology import BlockTopology

BIASES = ("bias", "q_bias", "v_bias")


def owns(method: Method, name: str, topology: BlockTopology) -> bool:
    """Whether a task of this method owns the tensor `name` of its model, whose backbone has this topology."""
    if method == "full" or (method == "bitfit" and name.rpartition(".")[2] in BIASES):
        return True
    return ".adapter." in name or name.startswith(f"{topology.head}.") or name == QUERY
