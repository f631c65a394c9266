"""Publish a bundle: `mosa push runs/digits OWNER/digits`."""

from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.gate import pack_images
from mosa_deploy.bundles.record import RECORD, TENSORS
from mosa_deploy.bundles.store_layout import VALIDATION
from mosa_deploy.bundles.validation import PREFIX
from mosa_deploy.errors import ConfigError, HubError, listed
from mosa_deploy.hub.address import open_remote, require_library
from mosa_deploy.hub.remote import CARD, Contents, Remote

BESIDE = (".gitattributes", ".gitignore", CARD)
"""Files that a new repository may have, and that do not tell what it is for."""


@dataclass(frozen=True)
class PushConfig:
    """What `mosa push` is asked for."""

    bundle: Path
    """The folder of a run or of another bundle, or a `.mosa` file."""
    repo: str
    revision: str | None = None
    private: bool = False
    license: str | None = None
    validation_images: bool = False


def push(config: PushConfig) -> str:
    """Publish a bundle with its card, print where, and return that.

    Raises:
        MosaError: there is no whole bundle, the address means nothing, or the remote cannot be written.
        HubError: something else than a bundle lies there.
    """
    archive = Archive.read(config.bundle)
    remote = open_remote(config.repo, config.revision)
    return push_to(remote, archive, config)


def push_to(remote: Remote, archive: Archive, config: PushConfig) -> str:
    """The same for a bundle that is read and a remote that is open."""
    bundle = archive.bundle()
    files = {RECORD: archive.record, TENSORS: archive.tensors}
    images = archive.validation if config.validation_images else ()
    if config.validation_images and not images:
        raise ConfigError(f"--validation-images: {config.bundle} has none: leave the flag out")
    if images:
        files[VALIDATION] = pack_images(images, PREFIX)
    require_library()
    from mosa_deploy.hub.card import card

    files[CARD] = card(bundle, config.repo, config.license, len(images)).encode()
    remote.prepare(config.private)
    before = remote.contents()
    check_ours(remote, before)
    stale = [name for name in (VALIDATION,) if name in before.sizes and name not in files]
    place = remote.write(before, files, stale, f"Bundle {bundle.digest[:12]} of {bundle.record.task}")
    print(f"{bundle.record.task}: bundle {bundle.digest[:12]} in {place}")
    return place


def check_ours(remote: Remote, before: Contents) -> None:
    """Raises HubError if a remote holds something else than a bundle, whose card would be replaced."""
    others = sorted(before.sizes.keys() - {*BESIDE})
    if others and RECORD not in before.sizes:
        raise HubError(f"{remote.name} holds {listed(others)}, and no bundle: name a repository of the bundle's own")
