"""What the recipe `reference` does otherwise: an AdamW that knows experts, dropout in the frozen backbone, the head.

The reference implementation's habits are known as a list, not from its code, and nothing of it is copied.
"""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from mosa_deploy.adapters.attach import split_layers
from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.backbones.foldable import Transformer

DROPOUTS = ("pos_drop", "proj_drop", "drop1", "drop2")
"""timm's names of dropout after the position embedding and after every dense layer but qkv, where the ViT has it
(arXiv 2010.11929, appendix B.1)."""


class ExpertAdamW(Optimizer):
    """AdamW (arXiv 1711.05101) with a step count for each expert of a split projection.

        t_k <- t_k + [expert k was drawn]
        m   <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
        w   <- w - lr (decay (W0 + w) + (m / (1 - b1^t_k)) / (sqrt(v / (1 - b2^t_k)) + eps))

    k is the expert that owns the entry. Entries whose expert was not drawn have the gradient zero, and are trained like
    the others. Until its first draw nothing but the decay moves an expert. W0 + w is the projection that a split
    projection stands for: its Delta, w, starts at zero. Other parameters have W0 = 0 and one count, of all steps.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        layers: Iterable[SplitLinear],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.layers: dict[Tensor, SplitLinear] = {}
        for layer in layers:
            self.layers |= dict.fromkeys(layer.parameters(), layer)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # no closure is called
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, layer = self.state[parameter], self.layers.get(parameter)
        if not state:
            state["steps"] = parameter.new_zeros(layer.experts if layer else 1)
            state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        steps, m, v = state["steps"], state["m"], state["v"]
        steps[list(layer.drawn) if layer else [0]] += 1
        b1, b2 = group["betas"]
        m.lerp_(gradient, 1 - b1)
        v.lerp_(gradient.square(), 1 - b2)
        first, second = (self._of_entries(1 - b ** steps.clamp(min=1), parameter, layer) for b in (b1, b2))
        whole = parameter + layer.base if layer and parameter is layer.weight else parameter
        moved = (m / first) / ((v / second).sqrt() + group["eps"])
        parameter.sub_(group["lr"] * (group["weight_decay"] * whole + moved))

    @staticmethod
    def _of_entries(of_experts: Tensor, parameter: Tensor, layer: SplitLinear | None) -> Tensor:
        """A value per expert -> the value of each entry's expert, in a shape that broadcasts to the parameter's."""
        if layer is None:
            return of_experts
        return of_experts[layer.owner.long()] if parameter is layer.weight else of_experts[:, None]


def expert_adamw(model: Transformer, lr: float, weight_decay: float) -> ExpertAdamW:
    """The optimiser of everything in `model` that is tuned; biases and norms have no decay."""
    return ExpertAdamW(param_groups_weight_decay(model, weight_decay), split_layers(model), lr=lr)


def set_backbone_dropout(model: Transformer, p: float) -> None:
    """Let training drop values inside the frozen backbone; adapters keep their own dropout."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.rpartition(".")[2] in DROPOUTS:
            module.p = p


def start_head(model: Transformer, bias: float) -> None:
    """Start the head kaiming-normal by its outputs (fan out), with all biases alike, as rare classes have them."""
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    nn.init.kaiming_normal_(head.weight, mode="fan_out")
    nn.init.constant_(head.bias, bias)
