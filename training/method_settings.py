"""Which settings which methods take, and what methods use instead of the preset's values."""

from typing import Any

from mosa_deploy.bundles.adapter_config import (
    BACKBONE_METHODS,
    LOW_RANK_METHODS,
    PROBES,
    SEQUENTIAL_STYLES,
    SPLIT_METHODS,
    AdapterConfig,
)

SPLIT_ONLY: dict[str, Any] = {
    "experts": 1,
    "share": AdapterConfig.share,
    "merge_scale": "expectation",
    "dense_epochs": 0,
    "activate": AdapterConfig.activate,
}
"""The settings that only methods with experts take, and the value that other methods use."""

UNCHANGED: dict[str, Any] = {"augment": "none", "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
"""The settings that leave training images as they are."""

AUTO = "auto"
"""The value of --method that tries methods and keeps the best; see `training.auto`."""

WITHOUT_AUGMENTATION = (*PROBES, AUTO)
"""The methods that have only these: a probe is fitted on features of images as they are, and `auto` tries probes on the
same images as all methods."""

METHODS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SPLIT_ONLY, SPLIT_METHODS),
    "targets": LOW_RANK_METHODS,
    "groups": ("repadapter",),
    "style": ("adapter", "mosa"),
    **dict.fromkeys(("trials", "worth"), (AUTO,)),
    **dict.fromkeys(("layer_decay", "drop_path"), BACKBONE_METHODS),
}
"""Setting -> the methods that take it, for settings that not every method takes."""

GROUPS = {
    " and ".join(methods): [name for name, taken in METHODS_OF.items() if taken == methods]
    for methods in dict.fromkeys(METHODS_OF.values())
    if methods != BACKBONE_METHODS
}
"""Heading in the help -> the settings below it, for settings that only some methods take. Those of `BACKBONE_METHODS`
stand below a heading of `training.tune_options`."""

STYLE_METHODS: dict[str, tuple[str, ...]] = {
    "low-rank": LOW_RANK_METHODS,
    "repadapter": ("repadapter", "mosa"),
    "ssf": ("ssf",),
}
"""Style -> its methods, for styles that are methods of their own."""

ADAPTER_ONLY = ("bottleneck", "scale", "adapt_blocks")
"""Options that shape adapters, which methods that tune the backbone itself have not. Probes let them pass, so that one
command or file serves probes and adapters."""

LACKING: dict[str, tuple[str, ...]] = {**dict.fromkeys(BACKBONE_METHODS, ADAPTER_ONLY), "ssf": ("bottleneck", "scale")}
"""Method -> the options among those of `ADAPTER_ONLY` that it has no use for."""

LOW_RANK_SETTINGS: dict[str, Any] = {
    "bottleneck": AdapterConfig.bottleneck,
    "scale": 1.0,
    "style": "low-rank",
    "targets": ("q", "v"),
}
"""The values that a low-rank method uses instead of those of the task's preset."""

REPADAPTER_SETTINGS: dict[str, Any] = {"style": "repadapter", "bottleneck": 8, "scale": 1.0, "groups": 2}
"""The values that RepAdapter uses instead: r = 8 and two groups are the paper's."""

SSF_SETTINGS: dict[str, Any] = {"style": "ssf", "scale": 1.0, "dropout": 0.0, "passes": 1, "consistency": 0.0}
"""The values that SSF uses instead: it has no dropout, so a second pass would say the same."""

ATTENTIVE_SETTINGS: dict[str, Any] = {"lr": 1e-2, "epochs": 50, "batch_size": 64, "passes": 1, "consistency": 0.0}
"""The values that the attentive probe uses instead: it has no dropout, so a second pass would say the same."""

BITFIT_SETTINGS: dict[str, Any] = {"passes": 1, "consistency": 0.0}
"""The values that tuning of biases uses instead: without drop path a second pass would say the same. The learning rates
that suit adapters suit it too."""

FULL_SETTINGS: dict[str, Any] = {**BITFIT_SETTINGS, "lr": 3e-4, "layer_decay": 0.75}
"""The values that tuning of the whole backbone uses instead."""

USUAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LOW_RANK_METHODS, LOW_RANK_SETTINGS),
    "repadapter": REPADAPTER_SETTINGS,
    "ssf": SSF_SETTINGS,
    "attentive": ATTENTIVE_SETTINGS,
    "full": FULL_SETTINGS,
    "bitfit": BITFIT_SETTINGS,
}
"""Method -> the values that it uses instead of those of the task's preset."""

OF_STYLE: dict[str, dict[str, Any]] = {
    **{style: {"scale": 1.0} for style in SEQUENTIAL_STYLES},
    "repadapter": {name: REPADAPTER_SETTINGS[name] for name in ("bottleneck", "scale")},
}
"""What `--style` puts in the place of the preset's values."""

ON_TOY: dict[str, dict[str, Any]] = {"full": {"lr": 1e-3}}
"""Method -> what is otherwise on the embedded backbone."""


def usual_settings(method: str, toy: bool) -> dict[str, Any]:
    """The values that a method uses instead of those of the task's preset; `toy` is the embedded backbone."""
    return USUAL.get(method, {}) | (ON_TOY.get(method, {}) if toy else {})
