"""What `kubectl kustomize` makes of a folder, as far as deploy/kubernetes uses it."""

from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

FIELDS = {"apiVersion", "kind", "resources", "configMapGenerator", "images", "patches"}
"""The fields of a kustomization that are carried out here."""


def build(folder: Path) -> list[Resource]:
    """The resources of a folder with a kustomization, patched."""
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert wanted.keys() <= FIELDS, wanted.keys() - FIELDS
    found: list[Resource] = []
    for name in wanted.get("resources", ()):
        path = folder / name
        found += build(path) if path.is_dir() else [*yaml.safe_load_all(path.read_text())]
    for each in wanted.get("configMapGenerator", ()):
        data = dict(line.split("=", 1) for line in each["literals"])
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": each["name"]}, "data": data})
    for patch in wanted.get("patches", ()):
        change = yaml.safe_load((folder / patch["path"]).read_text())
        (target,) = [each for each in found if _identity(each) == _identity(change)]
        found[found.index(target)] = _merged(target, change)
    for image in wanted.get("images", ()):
        for container in containers(found):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    return found


def containers(resources: list[Resource]) -> list[Resource]:
    """All containers of all deployments."""
    pods = [each["spec"]["template"]["spec"] for each in resources if each["kind"] == "Deployment"]
    return [container for pod in pods for container in pod["containers"]]


def _identity(resource: Resource) -> tuple[str, str]:
    return resource["kind"], resource["metadata"]["name"]


def _merged(old: Any, new: Any) -> Any:
    """A strategic merge: objects field by field, lists of named objects by name, and other lists as a whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {name: _merged(old.get(name), new[name]) if name in new else old[name] for name in {**old, **new}}
    if isinstance(old, list) and isinstance(new, list) and all("name" in each for each in [*old, *new]):
        named = {each["name"]: each for each in old}
        return [*{**named, **{each["name"]: _merged(named.get(each["name"]), each) for each in new}}.values()]
    return new
