"""The ImageStream openshift/driver-toolkit, and its ImageStreamTags where given, to facts.

Format: image.openshift.io/v1. spec.tags[] has `name` and `from`, status.tags[] what was imported, or why
not; an ImageStreamTag (`oc get istag`) has the labels of its image. openshift/driver-toolkit, manifests/,
gives each release a tag of the RHCOS version, and `latest`, from 4.21 on `latest-rhel-10` too; tags of
earlier releases stay.
"""

from __future__ import annotations

import re
from typing import Any, Iterable, Mapping, Optional

from attrs import evolve

from nvdriver_build.fleet.facts import ImageStream, Tag
from nvdriver_build.fleet.objects import entries, part, text, texts
from nvdriver_build.fleet.reasons import Reason
from nvdriver_build.fleet.versions import ARCHITECTURES, is_kernel

NAME = "driver-toolkit"
_LATEST = re.compile(r"latest(?:-rhel-(\d{1,3}))?", re.ASCII)
_PULL_SPEC = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,511}", re.ASCII)
_HOPS = 3
_IMPORT_HINT = "nodes pull it themselves, by their own mirrors and pull secret; is it there for them?"


def imagestream_facts(document: object, tags: Iterable[object] = ()) -> ImageStream:
    """What is known of the toolkits; `tags` are ImageStreamTags, whose labels say which kernel they hold."""
    reasons: list[Reason] = []
    specs = _specs(document, reasons)
    labels = dict(_labels(each) for each in tags)
    imported = {text(each, "tag"): each for each in entries(document, "status", "tags")}
    made = [_tag(name, specs, imported.get(name, {}), labels.get(name, {})) for name in specs]
    newest = [(found[1], tag.image) for tag in made if (found := _LATEST.fullmatch(tag.name)) and tag.image]
    others = tuple(sorted((tag for tag in made if not _LATEST.fullmatch(tag.name)), key=lambda tag: tag.name))
    return ImageStream(
        tags=others,
        latest=tuple(image for stream, image in newest if stream is None),
        streams=tuple(sorted((int(stream), image) for stream, image in newest if stream)),
        reasons=tuple(reasons),
    )


def _specs(document: object, reasons: list[Reason]) -> dict[str, Mapping[str, Any]]:
    """The tags by name; the first of two with one name."""
    found: dict[str, Mapping[str, Any]] = {}
    for each in entries(document, "spec", "tags"):
        name = text(each, "name")
        if name is None:
            reasons.append(
                Reason("TagWithoutName", "a tag of the ImageStream has no usable name: passed over")
            )
        elif name in found:
            if part(each, "from") != part(found[name], "from"):
                reasons.append(
                    Reason(
                        "TagTwice", f"the tag {name} is there twice, with different images: the first counts"
                    )
                )
        else:
            found[name] = each
    return found


def _tag(
    name: str, specs: Mapping[str, Mapping[str, Any]], imported: Mapping[str, Any], image: Mapping[str, Any]
) -> Tag:
    spec, reasons = _image(name, specs, imported), list[Reason]()
    if spec is None:
        reasons.append(Reason("TagWithoutImage", f"the tag {name} leads to no image"))
    failed = [
        each
        for each in entries(imported, "conditions")
        if each.get("type") == "ImportSuccess" and each.get("status") == "False"
    ]
    if failed:
        why = text(failed[0], "message") or text(failed[0], "reason") or "no reason given"
        message = f"the cluster could not import the tag {name}: {why[:200]}"
        reasons.append(Reason("TagNotImported", message, _IMPORT_HINT))
    return evolve(_with_labels(Tag(name, spec), image), reasons=tuple(reasons))


def _image(
    name: str, specs: Mapping[str, Mapping[str, Any]], imported: Mapping[str, Any], hops: int = _HOPS
) -> Optional[str]:
    """The pull spec of a tag: its own, that of the tag that it stands for, or that of what was imported
    last.
    """
    source = part(specs.get(name), "from")
    target = text(source, "name")
    if source.get("kind") == "ImageStreamTag" and target is not None and hops > 0:
        other = target.rpartition(":")[2]
        if other != name and other in specs:
            return _image(other, specs, {}, hops - 1)
    elif target is not None and _PULL_SPEC.fullmatch(target) and source.get("kind") in (None, "DockerImage"):
        return target
    last = next(entries(imported, "items"), {})
    pulled = text(last, "dockerImageReference") or ""
    return pulled if _PULL_SPEC.fullmatch(pulled) else None


def _labels(document: object) -> tuple[Optional[str], Mapping[str, Any]]:
    """The tag's name and the image of an ImageStreamTag, whose own name is `driver-toolkit:TAG`."""
    name = text(document, "tag", "name") or (text(document, "metadata", "name") or "").rpartition(":")[2]
    return name, part(document, "image")


def _with_labels(tag: Tag, image: Mapping[str, Any]) -> Tag:
    metadata = part(image, "dockerImageMetadata")
    labels = texts(metadata, "Config", "Labels")
    several = [text(each, "architecture") for each in entries(image, "dockerImageManifests")]
    archs = {ARCHITECTURES.get(each, each) for each in (*several, text(metadata, "Architecture")) if each}
    kernels = [labels.get(name, "").strip() for name in ("kernel-version", "kernel-rt-version")]
    kernel, rt_kernel = (each if is_kernel(each) else None for each in kernels)
    return evolve(tag, kernel=kernel, rt_kernel=rt_kernel, archs=tuple(sorted(archs)))
