"""Which Driver Toolkit is for which nodes: an operator's word, the tag of the RHCOS version, an image's
label.

`latest` is never used to choose: it is of the newest release, not of a node's.
"""

from __future__ import annotations

from typing import Mapping, Optional

from attrs import frozen

from nvdriver_build.fleet.facts import ImageStream, Tag
from nvdriver_build.fleet.plan.values import LABEL_RULE, OVERRIDE, TAG_RULE, Toolkit
from nvdriver_build.fleet.reasons import Reason, some
from nvdriver_build.fleet.versions import parts, release, without_rt

_GIVE = (
    "--toolkit {version}=IMAGE gives one; 'oc adm release info --image-for=driver-toolkit RELEASE' names it"
)


@frozen
class Found:
    """A toolkit, or none, and whether nodes can build with it; `broken` where one is there and they
    cannot.
    """

    toolkit: Optional[Toolkit]
    reasons: tuple[Reason, ...] = ()
    usable: bool = False

    @property
    def broken(self) -> bool:
        """Whether there is one that cannot be used."""
        return self.toolkit is not None and not self.usable

    @property
    def image(self) -> Optional[str]:
        """What can be used."""
        return self.toolkit.image if self.toolkit is not None and self.usable else None


def find_toolkit(
    version: str,
    kernel: Optional[str],
    arch: str,
    stream: Optional[ImageStream],
    overrides: Mapping[str, str],
) -> Found:
    """The toolkit for nodes of this version and kernel; the reasons say why it is that one, or none."""
    if version in overrides:
        toolkit = Toolkit(None, overrides[version], OVERRIDE)
        return Found(toolkit, (Reason("ToolkitGiven", f"its toolkit was given: {toolkit.image}"),), True)
    if stream is None:
        message = "there is no ImageStream openshift/driver-toolkit"
        return Found(None, (Reason("NoImageStream", message, _GIVE.format(version=version)),))
    named = next((tag for tag in stream.tags if tag.name == version), None)
    trouble = against(named, kernel, arch) if named else None
    if named is not None and trouble is None:
        return Found(Toolkit(named.name, named.image, TAG_RULE), named.reasons, True)
    other = _by_label(stream, kernel, arch)
    first = trouble or _no_tag(version, stream)
    if other is not None:
        message = f"the image of the tag {other.name} says that it is for {kernel}, and is taken"
        found = Toolkit(other.name, other.image, LABEL_RULE)
        return Found(found, (first, Reason("FoundByLabel", message), *other.reasons), True)
    broken = Toolkit(named.name, named.image, TAG_RULE) if named else None
    return Found(broken, (first,))


def against(tag: Tag, kernel: Optional[str], arch: str) -> Optional[Reason]:
    """Why nodes of this kernel cannot build with this tag's image; None where nothing is known against it."""
    hint = f"is the ImageStream of this cluster's release? {_GIVE.format(version=tag.name)}"
    if tag.image is None:
        return next(iter(tag.reasons), None) or Reason(
            "BrokenToolkit", f"the tag {tag.name} has no image", hint
        )
    if tag.archs and arch not in tag.archs:
        message = (
            f"broken toolkit: the image of the tag {tag.name} is for {', '.join(tag.archs)}, not for {arch}"
        )
        return Reason("BrokenToolkit", message, hint)
    if kernel is not None and has_kernel(tag, kernel) is False:
        holds = " and ".join(each for each in (tag.kernel, tag.rt_kernel) if each)
        message = f"broken toolkit: the image of the tag {tag.name} holds {holds}, the nodes run {kernel}"
        return Reason("BrokenToolkit", message, hint)
    return None


def has_kernel(tag: Tag, kernel: str) -> Optional[bool]:
    """Whether the image's labels name this kernel; None where they do not tell.

    Architectures are not compared: an image for several has the labels of one. There is no label for 64k
    and debug kernels, which come with the standard one; that of RT kernels is at times missing
    (driver-toolkit 161).
    """
    wanted = parts(kernel)
    if wanted.flavour == "rt" and tag.rt_kernel is not None:
        return parts(tag.rt_kernel).base == wanted.base
    if tag.kernel is None:
        return None
    same = parts(tag.kernel).base == without_rt(wanted.base)
    return None if same and wanted.flavour == "rt" else same


def kernel_in(tag: Tag, flavour: str, arch: str) -> Optional[str]:
    """The kernel of this flavour that the image holds, as far as its labels tell."""
    told = tag.rt_kernel if flavour == "rt" else tag.kernel
    return release(parts(told).base, arch, flavour) if told else None


def _by_label(stream: ImageStream, kernel: Optional[str], arch: str) -> Optional[Tag]:
    if kernel is None:
        return None
    fitting = (tag for tag in stream.tags if has_kernel(tag, kernel) and against(tag, kernel, arch) is None)
    return next(fitting, None)


def _no_tag(version: str, stream: ImageStream) -> Reason:
    there = some(tag.name for tag in stream.tags) or "none"
    message = f"the ImageStream driver-toolkit has no tag {version} (it has {there})"
    return Reason("NoToolkit", message, _GIVE.format(version=version))
