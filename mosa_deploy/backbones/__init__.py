"""Backbones: timm models by name, file or hub, and the conditions under which adapters fold into them."""
