"""The preset that goes with a task and its backbone, the size of the images, and what a run says of both."""

from mosa_deploy.backbones.names import EMBEDDED, is_embedded
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, PROBES
from training.config import TuneConfig
from training.recipe import Recipe, with_labels
from training.tasks import find
from training.tasks.base import REAL, Task

TOY = Recipe(backbone=EMBEDDED, experts=2, scale=1.0, epochs=10, batch_size=16, lr=1e-2)
"""For the embedded backbone, where a task's own preset is for another."""

SIZES = {"_dinov2": {"cuda": 224, "cpu": 98}, "_dinov3": {"cuda": 256, "cpu": 96}}
"""The side of the images by family and device, for backbones whose own 518 or 256 pixels take too long.

On two cores with AVX512, MoSA in all blocks of the ViT-S trains on 17 images/s at 98 px in fp32 (two passes), and on 30
in bf16: a folder of 250 images, of which 150 are for training, took three minutes in 30 epochs in bf16. At 224 px it is
2.9 and 5.0 images/s. The patches of DINOv3 are larger: 96 px have 36 of them, where 98 px of DINOv2 have 49.
"""

SIZE_REASONS = {
    "cuda": ("", " (a GPU is here)"),
    "cpu": (
        " ({larger} sees more and takes six times as long)",
        " (two cores then tune on 250 images within ten minutes)",
    ),
}
"""Device -> what to say of another size, and why this one was chosen."""


def task_of(config: TuneConfig) -> Task:
    """The task that the options name, with what they say of its images.

    Raises:
        ConfigError: there is no such task, or it does not take an option.
    """
    return find(config.task, config.labels, config.group, config.labelling.multi_label, config.starting.least_classes)


def preset(task: Task, backbone: str | None) -> Recipe:
    """The settings of a task that the user leaves out, with the backbone that the user names, if any.

    The embedded backbone needs a larger scale and learning rate than others.
    """
    own = task.recipe
    if backbone is None or is_embedded(backbone) == is_embedded(own.backbone):
        return own
    other = TOY if is_embedded(backbone) else REAL
    return with_labels(other) if own.multi_label else other


def choose_image_size(config: TuneConfig, backbone: str, device: str) -> int | None:
    """The side of the images in pixels; None is the backbone's own."""
    return sizes_of(backbone)[device] if config.image_size is None and sizes_of(backbone) else config.image_size


def sizes_of(backbone: str) -> dict[str, int]:
    """Device -> the side of the images of a backbone, if it is not the backbone's own."""
    return next((sizes for family, sizes in SIZES.items() if family in backbone.partition(".")[0]), {})


def backbone_remarks(config: TuneConfig, recipe: Recipe, size: int | None, device: str) -> tuple[str, ...]:
    """What the user should know of the backbone: what it is if it is the toy, or what was chosen, and why.

    `config` holds what the user said, `size` what `choose_image_size` made of it.
    """
    if is_embedded(recipe.backbone):
        return (
            f"{recipe.backbone} is a toy to try things with: it sees 32 pixels, and has seen CIFAR-10 alone. For real"
            f" work take another: `mosa backbone list`",
        )
    chosen: dict[str, str] = {}
    if config.backbone is None:
        chosen["--backbone (see `mosa backbone list`)"] = f"{recipe.backbone}, which is DINOv2 ViT-S/14"
    why = ""
    if size != config.image_size:
        more, why = SIZE_REASONS[device]
        more = more.format(larger=sizes_of(recipe.backbone)["cuda"])
        chosen[f"--image-size{more}"] = f"images of {size} x {size} pixels"
        if config.adapt_blocks is None and config.method not in (*PROBES, *BACKBONE_METHODS):
            chosen["--adapt-blocks"] = "adapters in all blocks"
    said = f"chosen for you: {', '.join(chosen.values())}{why}; {', '.join(chosen)} choose otherwise"
    return (said,) if chosen else ()
