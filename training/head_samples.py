"""Dropout before the head, also with several masks for one pass through the backbone."""

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.backbones.foldable import Transformer


class HeadDropout(nn.Module):
    """Multi-sample dropout, arXiv 1905.09788: M masks of each row of features, (N, C) -> (N M, C), in training alone.

    The M samples of a row follow each other, so labels fit after `repeat_interleave(M)`.
    """

    def __init__(self, p: float, samples: int) -> None:
        super().__init__()
        self.p, self.samples = p, samples

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N M, C) in training, else the same."""
        return F.dropout(x.repeat_interleave(self.samples, 0), self.p) if self.training else x


def set_head_dropout(model: Transformer, p: float, samples: int) -> None:
    """Let training drop features before the head, with so many masks; with p = 0 the model stays as it is."""
    if p:
        model.set_submodule("head.drop" if isinstance(model, SwinTransformer) else "head_drop", HeadDropout(p, samples))
