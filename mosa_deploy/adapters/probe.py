"""A probe: a frozen ViT whose head reads more than timm's own does; `mosa_deploy.bundles.probe_features` says what.

An attentive probe weighs the patches x (N, C) by one learned query q, w = softmax(x q / sqrt(C)), and its logits are
W (x^T w) + b. That is the whole of cross-attention with one head and one query u: keys x K meet u as x (K u), so
q = K u; values x V give V^T (x^T w), so W takes V^T in. More matrices would say nothing new.
"""

from typing import Any, cast

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from mosa_deploy.backbones.foldable import Transformer, Vit, topology_of
from mosa_deploy.bundles.probe_features import Features, earlier_blocks, features_width
from mosa_deploy.errors import BackboneError


def check_features(model: Transformer, features: Features) -> None:
    """Raises BackboneError if the model cannot give these features."""
    if not isinstance(model, SwinTransformer) or features == "cls":
        return
    if features == "attended":
        raise BackboneError("--method attentive needs a ViT: on a Swin choose method linear, adapter or mosa")
    raise BackboneError(
        f"--features {features} needs a ViT: a Swin has no class token, and its features are the mean of its patches"
        " already: leave --features out"
    )


class Probe(nn.Module):
    """A frozen backbone with a head of its own: images (B, 3, H, W) -> logits (B, K)."""

    def __init__(self, backbone: Transformer, features: Features, classes: int) -> None:
        """Takes the backbone over, without its head.

        Raises:
            BackboneError: the backbone cannot give these features.
        """
        super().__init__()
        check_features(backbone, features)
        assert isinstance(backbone, Vit)
        backbone.reset_classifier(0)
        self.backbone, self.features = backbone, features
        self.topology = topology_of(backbone)
        self.head: nn.Module
        self.reset_classifier(classes)
        # Zeros weigh all patches alike.
        self.query = nn.Parameter(torch.zeros(self.topology.width)) if features == "attended" else None

    def get_classifier(self) -> nn.Module:
        """The head, as timm's models have it."""
        return self.head

    def reset_classifier(self, classes: int) -> None:
        """Give it a fresh head; without classes the model ends in the features."""
        width = features_width(self.features, self.topology)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K)."""
        logits: Tensor = self.head(self.pooled(images))
        return logits

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the features that the head reads."""
        if self.query is not None:
            return attend(self.patches(images), self.query)
        earlier = earlier_blocks(self.topology) if self.features == "blocks" else 0
        # An Eva without prefix tokens cannot return them.
        prefixed = self.backbone.num_prefix_tokens > 0
        found: Any = self.backbone.forward_intermediates(
            images, indices=earlier + 1, return_prefix_tokens=prefixed, output_fmt="NLC"
        )
        last, blocks = found
        own = [self._token(block) for block in blocks[:-1]]
        pooled = self.backbone.forward_head(last, pre_logits=True)
        return torch.cat([*own, pooled, self._patches_of(last).mean(1)], dim=1)

    def patches(self, images: Tensor) -> Tensor:
        """The last block's patches after the backbone's last norm, (B, N, C)."""
        return self._patches_of(self.backbone.forward_features(images))

    def _patches_of(self, tokens: Tensor) -> Tensor:
        # A ViT has its last norm before or after the pooling; the other one is the identity.
        patches: Tensor = self.backbone.fc_norm(tokens[:, self.backbone.num_prefix_tokens :])
        return patches

    def _token(self, block: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """The class token of a block's output, or the mean of its patches, after the backbone's last norm."""
        patches, prefix = block if isinstance(block, tuple) else (block, None)
        wanted = patches if prefix is None or self.backbone.cls_token is None else prefix[:, :1]
        token: Tensor = self.backbone.fc_norm(self.backbone.norm(wanted)).mean(1)
        return token


TunedModel = Transformer | Probe
"""What a bundle is restored to."""


def attend(patches: Tensor, query: Tensor) -> Tensor:
    """Patches (B, N, C) weighed by a query (C,): softmax(x q / sqrt(C)) x -> (B, C)."""
    weights = torch.softmax(patches @ query / patches.shape[-1] ** 0.5, dim=1)
    return (weights[:, None] @ patches)[:, 0]


def with_features(model: Transformer, features: Features, classes: int) -> TunedModel:
    """The model itself with a fresh head of `classes` outputs, or a probe on it if the head reads other features.

    Raises:
        BackboneError: the backbone cannot give these features.
    """
    if features != "cls":
        return Probe(model, features, classes)
    model.reset_classifier(classes)
    return model


def plain_backbone(model: TunedModel) -> Transformer:
    """The timm model in it."""
    return cast(Transformer, model.backbone) if isinstance(model, Probe) else model
