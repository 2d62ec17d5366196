"""Faults for the upgrade simulator to find: each is a patch of planner or controller, as text."""

# ruff: noqa: E501 - lines of the package, as they are
from __future__ import annotations

from typing import Dict, NamedTuple, Tuple


class Patch(NamedTuple):
    """In this file of `nvdriver_build/fleet`, this text (there once) becomes that."""

    file: str
    old: str
    new: str


FAULTS: Dict[str, Tuple[Patch, ...]] = {
    "label believed first": (
        Patch("inventory/nodes.py", "    believed = os_version(image) if image else None\n",
              "    believed = told or (os_version(image) if image else None)\n"),
    ),
    "DaemonSet deleted under its pods": (
        Patch("plan/removals.py", "    if found.pods:\n", "    if False:\n"),
        Patch("controller/acting.py", "        if any(page.items for page in", "        if False and any(page.items for page in"),
    ),
    "DaemonSet deleted on the word of its status": (
        Patch("controller/acting.py", "        if any(page.items for page in", "        if False and any(page.items for page in"),
        Patch("inventory/workloads.py", "    if seen is None or seen != present or there is None", "    if there is None"),
    ),
    "410 ignored": (
        Patch("controller/following.py", "        except Gone:\n            self.version = None\n",
              "        except Gone:\n            pass\n"),
    ),
    "latest taken to build with": (
        Patch("plan/toolkits.py", "    named = next((tag for tag in stream.tags if tag.name == version), None)\n",
              "    named = next((tag for tag in stream.tags if tag.image in stream.latest), None)\n"),
    ),
    "nothing is prebuilt": (
        Patch("plan/coming.py", "        if tag.image in stream.latest and is_version(tag.name)",
              "        if False and tag.image in stream.latest and is_version(tag.name)"),
    ),
    "parameters go under a driver that has them": (
        Patch("controller/acting.py", "for pod in list(self.view.pods.values.values()) for name in pod.config_maps}",
              "for pod in () for name in pod.config_maps}"),
    ),
    "parameters of drivers before stay": (
        Patch("controller/acting.py", "        self._remove_config_maps(objects)\n", ""),
    ),
    "label written once only": (
        Patch("plan/making.py", "            if value != node.label:\n", "            if node.label is None:\n"),
    ),
    "DaemonSets never go": (
        Patch("controller/acting.py", "        for name in plan.remove:\n", "        for name in ():\n"),
    ),
    "pods of an older template stay": (
        Patch("controller/acting.py", "        self._replace_pods(objects)\n", "        pass\n"),
    ),
    "ready pods are replaced too": (
        Patch("controller/acting.py", "not pod.up and not pod.ending", "not pod.ending"),
        Patch("controller/acting.py", "in_use(pods_on(self.api, seen.node))", "False"),
    ),
    "drivers that run are replaced where their probes are late": (
        Patch("controller/acting.py", "not pod.up and not pod.ending", "not pod.ready and not pod.ending"),
    ),
    "drivers in use are replaced where their kubelet starts again": (
        Patch("controller/acting.py", "in_use(pods_on(self.api, seen.node))", "False"),
    ),
    "pods are replaced whatever they are by now": (
        Patch("controller/acting.py", "self.api.delete(kind, name, self.namespace, seen.document())",
              "self.api.delete(kind, name, self.namespace)"),
    ),
    "what was applied counts as there": (
        Patch("controller/acting.py", "        if told is None or there is None:\n            return False\n",
              "        if told is None:\n            return False\n        if there is None:\n            return True\n"),
    ),
    "changes of others are not seen": (
        Patch("controller/acting.py", " and uid == there.uid and _not_newer(there.mark, mark)", ""),
    ),
    "deletions of a watch are passed over": (
        Patch("controller/view.py", "        value = None if event.type == DELETED else self._reduce(event.object)\n",
              "        value = self._reduce(event.object)\n"),
    ),
    "a new list leaves what is gone": (
        Patch("controller/view.py", "        self.values, self.synced = values, True\n",
              "        self.values, self.synced = {**self.values, **values}, True\n"),
    ),
    "nodes that are down are passed over": (
        Patch("plan/groups.py", "        if node.gpu:\n", "        if node.gpu and node.ready:\n"),
        Patch("plan/making.py", "            served = node.gpu and", "            served = node.ready and node.gpu and"),
    ),
    "broken toolkits are not seen": (
        Patch("plan/toolkits.py", "    if kernel is not None and has_kernel(tag, kernel) is False:\n",
              "    if False and kernel is not None:\n"),
    ),
    "a DaemonSet for each toolkit": (
        Patch("plan/making.py", "        wanted = [DaemonSetWanted(each, self._name(each), images.get(each)) for each in versions]\n",
              "        wanted = [DaemonSetWanted(each, self._name(each + (images.get(each) or '')), images.get(each))"
              " for each in versions]\n"),
    ),
    "one architecture's kernel for all": (
        Patch("plan/toolkits.py", "    return release(parts(told).base, arch, flavour) if told else None\n",
              "    return told\n"),
    ),
    "a node too many": (
        Patch("upgrade/rollout.py", "max(0, limit - len(taken | found.down))", "limit"),
    ),
    "two masters": (
        Patch("upgrade/choosing.py", "    if node.kept_out is not None:\n        return node.kept_out\n", ""),
        Patch("upgrade/deciding.py", " and facts.kept_out is None", ""),
    ),
    "a person's cordon is taken for ours": (
        Patch("upgrade/choosing.py", '    return "" if node.schedulable else _CORDONED\n', '    return ""\n'),
        Patch("upgrade/deciding.py", "facts.ready and facts.schedulable and", "facts.ready and"),
    ),
    "a driver goes under its users": (
        Patch("upgrade/deciding.py", "    if node.workloads:\n", "    if False:\n"),
        Patch("upgrade/deciding.py", "if old and (node.workloads or", "if old and (False or"),
    ),
    "the view says which nodes are under way": (
        Patch("controller/upgrading.py", "in self.api.pages(NODE, labels=UPGRADE)", "in ()"),
    ),
    "a node is cordoned before that is noted": (
        Patch("controller/upgrading.py", "        self.api.merge(NODE, name, change)\n",
              "        if 'spec' in change:\n"
              "            self.api.merge(NODE, name, {'spec': change.pop('spec')})\n"
              "            del change['metadata']['resourceVersion']\n"
              "        self.api.merge(NODE, name, change)\n"),
    ),
    "components stay paused": (
        Patch("upgrade/deciding.py", '    return Patch("UpgradeFinished", message, None, _uncordon(state), node.paused)\n',
              '    return Patch("UpgradeFinished", message, None, _uncordon(state))\n'),
    ),
    "a cordon of ours stays": (
        Patch("upgrade/deciding.py", "    return False if state.cordoned else None\n", "    return None\n"),
    ),
}  # fmt: skip
