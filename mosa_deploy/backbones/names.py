"""Names of backbones that other modules need before timm is imported."""

EMBEDDED = "vit_tinyd6_patch4_32.cifar10"
"""The backbone that comes with the package; `mosa_deploy.backbones.embedded` registers it with timm."""
