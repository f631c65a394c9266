"""What a backbone computes with its tensors: the arguments of timm's ViT that no tensor shows."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Pool = Literal["token", "avg", "max", "avgmax"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


class ModelArgs(BaseModel):
    """Arguments of `timm.create_model` in which a backbone departs from timm's model of its name; None where it agrees.

    Two backbones with the same tensors and other arguments are different backbones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    global_pool: Pool | None = None
    fc_norm: bool | None = None
    """Whether the last norm stands after the pooling instead of before it."""
    final_norm: bool | None = None
    """Whether there is a last norm at all."""
    pool_include_prefix: bool | None = None
    class_token: bool | None = None
    reg_tokens: Annotated[int, Field(ge=0, le=64)] | None = None
    no_embed_class: bool | None = None
    num_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    act_layer: Activation | None = None
    norm_eps: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The eps of every LayerNorm, which timm takes as part of `norm_layer`."""

    def __str__(self) -> str:
        given = self.model_dump(exclude_none=True)
        return ", ".join(f"{name} {value}" for name, value in given.items()) or "as timm has it"
