"""A plan to Kubernetes objects: what they hold, that they are valid, and when they change."""

from __future__ import annotations

import copy
import json
from typing import Any, Dict, Iterator, List, Optional

import pytest
from attrs import evolve
from cluster_objects import K2, V1, V2, V3, image, imagestream, imagestreamtag, node

from nvdriver_build.errors import UsageError
from nvdriver_build.fleet.inventory import cluster_facts
from nvdriver_build.fleet.manifests import (
    Driver,
    access_objects,
    content_digest,
    daemonset,
    driver_settings,
    plan_objects,
    plan_options,
    render,
    settings_document,
)
from nvdriver_build.fleet.names import DRIVER_NOTE, TEMPLATE_NOTE
from nvdriver_build.fleet.plan import DaemonSetWanted, Plan, make_plan
from nvdriver_build.fleet.reading import to_yaml

IMAGE = "registry.example.com/gpu/nvdriver-build@sha256:" + 64 * "1"
PLAIN = Driver(IMAGE)
FULL = Driver(
    IMAGE,
    env={"KERNEL_MODULE_TYPE": "open", "HTTPS_PROXY": "http://proxy.example.com:3128", "NVDRIVER_JOBS": "4"},
    env_secret="more",
    parameters={"nvidia.conf": "NVreg_EnableGpuFirmware=1\n"},
    registry="registry.example.com:5000/gpu/sets",
    registry_ca="-----BEGIN CERTIFICATE-----\n",
    registry_auth_secret="login",
    trust="-----BEGIN CERTIFICATE-----\n",
    sign_secret="signing",
    rdma=True,
    pull_secrets=("pull",),
    tolerations=({"key": "team", "operator": "Exists"},),
    resources={"limits": {"cpu": "8", "memory": "16Gi"}},
    prebuild_user=1000,
    fleet_image="registry.example.com/gpu/fleet@sha256:" + 64 * "2",
)
DRIVERS = {"plain": PLAIN, "full": FULL}
NEWEST, OLDEST = 37, 27


def plan_for(driver: Driver, *versions: str) -> Plan:
    """Nodes of the first version, one that has no toolkit, and what is coming."""
    nodes = [node("a", V1), node("b", V3), node("c", V1, arch="arm64")]
    stream = imagestream(V1, V2)
    return make_plan(
        cluster_facts(nodes, stream, tags=[imagestreamtag(V1), imagestreamtag(V2)]), plan_options(driver)
    )


def of_kind(objects: List[Dict[str, Any]], kind: str) -> List[Dict[str, Any]]:
    return [each for each in objects if each["kind"] == kind]


def pods(objects: List[Dict[str, Any]]) -> Iterator[Dict[str, Any]]:
    for each in objects:
        if "template" in each.get("spec", {}):
            yield each["spec"]["template"]["spec"]


def variables(container: Dict[str, Any]) -> Dict[str, Optional[str]]:
    return {each["name"]: each.get("value") for each in container["env"]}


@pytest.mark.once
@pytest.mark.parametrize("driver", DRIVERS.values(), ids=list(DRIVERS))
@pytest.mark.parametrize("minor", [OLDEST, 29, 31, 34, NEWEST])
def test_valid_by_the_published_schemas(driver: Driver, minor: int) -> None:
    """Every object of Kubernetes' own kinds is valid, strictly, from 1.27 to the newest that the validator
    has.
    """
    validator = pytest.importorskip("kubernetes_validate")
    for each in render(plan_for(driver), driver):
        if "openshift" not in each["apiVersion"]:
            validator.validate(each, f"1.{minor}", strict=True)


def test_the_newest_schemas_are_used() -> None:
    """A validator with newer schemas shows itself here."""
    validator = pytest.importorskip("kubernetes_validate")
    assert validator.latest_version().startswith(f"1.{NEWEST}")


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=list(DRIVERS))
def test_the_same_bytes(driver: Driver) -> None:
    """Equal plans give equal bytes; what is handed out may be changed without harm to the next."""
    first = render(plan_for(driver), driver)
    text = to_yaml(first)
    assert "&id" not in text
    for pod in pods(first):
        pod["containers"][0]["securityContext"]["privileged"] = "changed"
        pod["tolerations"] = None
    assert to_yaml(render(plan_for(driver), driver)) == text


def test_what_the_driver_sees() -> None:
    """What contracts.md and NVIDIA's DaemonSet say of the driver's container."""
    objects = plan_objects(plan_for(FULL), FULL)
    found = of_kind(objects, "DaemonSet")[0]
    pod = found["spec"]["template"]["spec"]
    driver, toolkit, peermem = pod["containers"]
    assert found["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert pod["hostPID"] and pod["priorityClassName"] == "system-node-critical"
    assert pod["nodeSelector"] == {"nvdriver-build/os-version": V1}
    assert driver["securityContext"] == {"privileged": True, "seLinuxOptions": {"level": "s0"}}
    mounts = {each["mountPath"]: each for each in driver["volumeMounts"]}
    assert mounts["/run/nvidia"]["mountPropagation"] == "Bidirectional"
    assert {
        "/run/nvidia-fabricmanager", "/run/nvidia-topologyd", "/var/log", "/dev/log", "/host-etc/os-release",
        "/run/mellanox/drivers", "/sys/devices/system", "/sys/module/firmware_class/parameters/path",
        "/lib/firmware", "/mnt/shared-nvidia-driver-toolkit", "/var/lib/nvdriver-build", "/drivers",
    } <= set(mounts)  # fmt: skip
    told = variables(driver)
    assert (
        told["RHCOS_VERSION"] == V1 and "OPENSHIFT_VERSION" not in told and "RHCOS_IMAGE_MISSING" not in told
    )
    assert told["NVDRIVER_REGISTRY"] == FULL.registry and told["KERNEL_MODULE_TYPE"] == "open"
    assert toolkit["image"] == image(V1) and "dtk-build-driver" in toolkit["command"][-1]
    assert peermem["args"] == ["reload_nvidia_peermem"]


def test_the_toolkit_has_no_rights() -> None:
    """The Driver Toolkit's container is not privileged, and sees nothing but the shared folder."""
    pod = next(pods(plan_objects(plan_for(FULL), FULL)))
    toolkit = pod["containers"][1]
    assert toolkit["securityContext"]["privileged"] is False
    assert toolkit["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [each["name"] for each in toolkit["volumeMounts"]] == ["shared-nvidia-driver-toolkit"]
    assert set(variables(toolkit)) == {"NVIDIA_VISIBLE_DEVICES"}


def test_without_a_toolkit() -> None:
    """The pod is there all the same: store and registry serve it, and it says why nothing is built."""
    found = of_kind(plan_objects(plan_for(PLAIN), PLAIN), "DaemonSet")[-1]
    (driver,) = found["spec"]["template"]["spec"]["containers"]
    assert found["metadata"]["annotations"] == {"nvdriver-build/os-version": V3}
    assert variables(driver)["RHCOS_IMAGE_MISSING"] == "true"


def test_not_taken_for_the_operators() -> None:
    """No name or label of ours is one by which the GPU Operator finds what it deletes; one driver is on a
    node.
    """
    for each in render(plan_for(FULL), FULL):
        text = str(each)
        assert "openshift.driver-toolkit" not in text and "nvidia-driver-daemonset" not in text
    pod = next(pods(plan_objects(plan_for(FULL), FULL)))
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expression = {"key": "app.kubernetes.io/component", "operator": "In", "values": ["nvidia-driver"]}
    assert term["labelSelector"]["matchExpressions"] == [expression] and term["namespaceSelector"] == {}


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=list(DRIVERS))
def test_what_the_operators_stack_asks(driver: Driver) -> None:
    """With driver.enabled=false: no owner by which its validator takes the driver for the operator's, the
    root and `.driver-ctr-ready` where they are looked for, and `driver-ready` left to the validator.
    """
    assert driver.namespace != "nvidia-gpu-operator"
    for found in of_kind(plan_objects(plan_for(driver), driver), "DaemonSet"):
        assert "ownerReferences" not in found["metadata"]
        pod = found["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert container["startupProbe"]["exec"]["command"] == ["nvdriver-build", "probe", "startup"]
        (run,) = [each for each in container["volumeMounts"] if each["mountPath"] == "/run/nvidia"]
        assert run["mountPropagation"] == "Bidirectional"
        (volume,) = [each for each in pod["volumes"] if each["name"] == run["name"]]
        assert volume["hostPath"]["path"] == "/run/nvidia"
        told = variables(container)
        assert "NVDRIVER_ANNOUNCE_DRIVER_READY" not in told and "NVDRIVER_DRIVER_ROOT" not in told
        assert not [name for name in pod["nodeSelector"] if name.startswith("nvidia.com/")]


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=list(DRIVERS))
def test_volumes_and_mounts_agree(driver: Driver) -> None:
    """Each mount has a volume, each volume is mounted, no path is there twice; selectors select their
    pods.
    """
    objects = plan_objects(plan_for(driver), driver)
    for pod in pods(objects):
        volumes = [each["name"] for each in pod["volumes"]]
        containers = [*pod["containers"], *pod.get("initContainers", [])]
        mounted = {each["name"] for container in containers for each in container["volumeMounts"]}
        assert len(volumes) == len(set(volumes)) and set(volumes) == mounted
        for container in containers:
            paths = [each["mountPath"] for each in container["volumeMounts"]]
            assert len(paths) == len(set(paths))
    for each in of_kind(objects, "DaemonSet"):
        chosen, template = each["spec"]["selector"]["matchLabels"], each["spec"]["template"]
        assert chosen.items() <= template["metadata"]["labels"].items()


def template(driver: Driver, contents: Optional[Dict[str, str]] = None) -> Any:
    return daemonset(DaemonSetWanted(V1, "x", image(V1)), driver, contents or {})["spec"]["template"]


@pytest.mark.parametrize(
    "change",
    [
        {"image": IMAGE.replace("1", "2")},
        {"env": {**FULL.env, "NVDRIVER_REUSE": "exact"}},
        {"parameters": {"nvidia.conf": "NVreg_EnableGpuFirmware=0\n"}},
        {"trust": "-----BEGIN CERTIFICATE-----\n2"},
        {"registry_ca": "-----BEGIN CERTIFICATE-----\n2"},
        {"registry": "registry.example.com:5001/gpu/sets"},
        {"registry": None},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_what_changes_the_pod(change: Dict[str, Any]) -> None:
    """The image, a setting, or what a ConfigMap holds."""
    assert template(evolve(FULL, **change)) != template(FULL)


def test_only_prebuilds_have_a_login_that_may_push() -> None:
    """`push_auth_secret` is mounted in the Job, at the place of the nodes' login, and nowhere else."""
    driver = evolve(FULL, push_auth_secret="push")
    (pod,) = (
        each["spec"]["template"]["spec"] for each in of_kind(plan_objects(plan_for(driver), driver), "Job")
    )
    (login,) = (each["secret"] for each in pod["volumes"] if each["name"] == "registry-login")
    assert login == {"secretName": "push"}
    assert template(driver) == template(FULL) and driver.secrets == FULL.secrets


def test_what_may_run_on_tainted_nodes() -> None:
    """A Job may have GPU nodes only, the controller none but tainted ones: all pods have the tolerations."""
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    everything = ({"operator": "Exists"}, {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})
    driver = evolve(FULL, tolerations=(*FULL.tolerations, *everything))
    found = render(plan_for(driver), driver)
    for kind in ("DaemonSet", "Job", "Deployment"):
        pod = of_kind(found, kind)[0]["spec"]["template"]["spec"]
        more = everything if kind == "DaemonSet" else ()  # a Job on a dead node would hang there
        assert pod["tolerations"] == [gpu, *FULL.tolerations, *more], kind


def maps(driver: Driver) -> Dict[str, Dict[str, str]]:
    return {
        each["metadata"]["name"]: each["data"]
        for each in of_kind(plan_objects(plan_for(driver), driver), "ConfigMap")
    }


def test_each_parameters_have_a_name_of_their_own() -> None:
    """A driver that runs keeps its ConfigMap when the settings change; certificates reach it at once."""
    other = evolve(FULL, parameters={"nvidia.conf": "NVreg_EnableGpuFirmware=0\n"})
    before, after = maps(FULL), maps(other)
    assert before.keys() & after.keys() == {"nvdriver-build-certificates"}
    ((name, data),) = [each for each in after.items() if "-parameters-" in each[0]]
    assert data == other.parameters
    volumes = template(other)["spec"]["volumes"]
    assert [each["configMap"]["name"] for each in volumes if each["name"] == "parameters"] == [name]
    assert maps(evolve(FULL, trust="another")).keys() == before.keys()
    assert maps(PLAIN) == {} and maps(evolve(FULL, parameters={})).keys() < before.keys()


def test_a_changed_secret_changes_the_pod() -> None:
    """What a Secret holds does, by a digest that does not give it away; its name alone does not tell."""
    digests = [content_digest("login", {"password": word}) for word in ("1234", "1235")]
    assert digests[0] != digests[1] and content_digest("other", {"password": "1234"}) != digests[0]
    pods_ = [template(FULL, {"login": each}) for each in digests]
    assert pods_[0] != pods_[1] and template(FULL, {"signing": "x"}) == template(FULL)


def test_what_changes_the_pod_and_not_the_driver() -> None:
    """A login that is changed every day, certificates, limits: no node is drained for them."""
    notes = template(FULL, {"login": "1"})["metadata"]["annotations"]
    changes: List[Dict[str, Any]] = [{"trust": "2"}, {"registry_ca": "2"}, {"resources": {}}]
    changes.append({"tolerations": ()})
    for found in (template(FULL, {"login": "2"}), *(template(evolve(FULL, **each)) for each in changes)):
        other = found["metadata"]["annotations"]
        assert other[DRIVER_NOTE] == notes[DRIVER_NOTE] and other[TEMPLATE_NOTE] != notes[TEMPLATE_NOTE]
    image_ = template(evolve(FULL, image=IMAGE.replace("1", "2")))["metadata"]["annotations"]
    assert image_[DRIVER_NOTE] != notes[DRIVER_NOTE]


def test_what_does_not_change_the_pod() -> None:
    """Other nodes, another cluster version, another coming version, the key that prebuilds sign with."""
    before = of_kind(plan_objects(plan_for(FULL), FULL), "DaemonSet")[0]
    nodes = [node(f"n{number}", V1) for number in range(9)]
    version = {"status": {"desired": {"version": "4.18.1"}}}
    plan = make_plan(cluster_facts(nodes, imagestream(V1, V3), cluster_version=version), plan_options(FULL))
    assert of_kind(plan_objects(plan, FULL), "DaemonSet")[0] == before
    assert template(evolve(FULL, sign_secret="another")) == template(FULL)


def test_prebuild_job() -> None:
    """Our image lays out, the toolkit builds without rights or keys, our image signs and publishes; it is
    bounded.
    """
    jobs = of_kind(plan_objects(plan_for(FULL), FULL), "Job")
    assert not of_kind(plan_objects(plan_for(PLAIN), PLAIN), "Job")
    (job,) = jobs
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    fill, build = pod["initContainers"]
    (publish,) = pod["containers"]
    assert (fill["image"], build["image"], publish["image"]) == (IMAGE, image(V2), IMAGE)
    assert build["command"][:2] == ["/work/bundle/ocp_dtk_entrypoint", "dtk-prebuild"]
    assert build["command"][-2:] == ["--kernel-release", K2] and "open" in build["command"]
    assert [each["name"] for each in build["volumeMounts"]] == ["work"]
    assert "signing" in [each["name"] for each in publish["volumeMounts"]]
    assert spec["backoffLimit"] <= 5 and spec["activeDeadlineSeconds"] <= 7200
    assert pod["priorityClassName"] == "nvdriver-build-prebuild" and pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"]["kubernetes.io/arch"] == "amd64" and not pod["automountServiceAccountToken"]


def test_other_driver_other_prebuild() -> None:
    """A prebuild of another driver is another Job: what it built does not serve."""
    names = {
        of_kind(plan_objects(plan_for(each), each), "Job")[0]["metadata"]["name"]
        for each in (FULL, evolve(FULL, image=IMAGE.replace("1", "2")), evolve(FULL, env={}))
    }
    assert len(names) == 3


def test_least_rights() -> None:
    """No wildcard in a role, secrets by name only; pods of drivers alone may use the SCC, and only with a
    registry Leases.
    """
    for driver in DRIVERS.values():
        objects = access_objects(driver)
        rules = [rule for each in objects for rule in each.get("rules", [])]
        assert rules and "*" not in str(rules)
        assert all(rule.get("resourceNames") for rule in rules if "secrets" in rule["resources"])
        (scc,) = of_kind(objects, "SecurityContextConstraints")
        assert scc["users"] == scc["groups"] == [] and not scc["allowHostNetwork"] and not scc["allowHostIPC"]
        (role,) = [
            each for each in of_kind(objects, "Role") if each["metadata"]["name"] == "nvdriver-build-driver"
        ]
        assert ("leases" in str(role)) is (driver.registry is not None)
        accounts = [each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")]
        for pod in pods(plan_objects(plan_for(driver), driver)):
            assert pod["serviceAccountName"] in accounts


def test_a_default_node_selector_keeps_no_driver_away() -> None:
    """OpenShift adds the cluster's to pods of every namespace that does not say otherwise."""
    (namespace,) = of_kind(access_objects(PLAIN), "Namespace")
    assert namespace["metadata"]["annotations"] == {"openshift.io/node-selector": ""}


def test_network() -> None:
    """Nobody calls our pods. Without a registry they call nobody; with one its port, the proxy's, DNS and
    the API.
    """
    for driver, ports in ((PLAIN, set()), (FULL, {443, 3128, 5000, 6443, 53, 5353})):
        policy = of_kind(render(plan_for(driver), driver), "NetworkPolicy")[0]["spec"]
        assert "ingress" not in policy and policy["policyTypes"] == ["Ingress", "Egress"]
        assert {port["port"] for rule in policy.get("egress", ()) for port in rule["ports"]} == ports


@pytest.mark.parametrize(
    ("proxy", "port"),
    [
        ("http://proxy.example.com:3128", 3128),
        ("proxy.example.com:3128", 3128),
        ("http://me:word@proxy.example.com:3128/", 3128),
        ("me:word@[2001:db8::1]:3128", 3128),
        ("proxy.example.com", 80),
        ("http://proxy.example.com", 80),
        ("http://[2001:db8::1]", 80),
        ("https://proxy.example.com", 443),
        ("", None),
        ("http://proxy.example.com:99999", None),
        ("http://[proxy", None),
    ],
)
def test_the_way_to_a_proxy(proxy: str, port: Optional[int]) -> None:
    """Driver, Job and controller may call a proxy, however it is written; what is none opens nothing."""
    driver = evolve(FULL, registry="registry.example.com/gpu/sets", env={"https_proxy": proxy})
    policies = of_kind(render(plan_for(driver), driver), "NetworkPolicy")
    assert len(policies) == 3
    for each in policies:
        (_, calls) = each["spec"]["egress"]
        ports = {wanted["port"] for wanted in calls["ports"]}
        assert ports - {443, 6443} == {port} - {443, None}


def test_nfd_label() -> None:
    """Where configured, pods are placed by NFD's label, and ours is set on no node."""
    driver = evolve(PLAIN, nfd_label=True)
    plan = plan_for(driver)
    pod = next(pods(plan_objects(plan, driver)))
    assert list(pod["nodeSelector"]) == ["feature.node.kubernetes.io/system-os_release.OSTREE_VERSION"]
    assert not plan.labels


@pytest.mark.parametrize(
    ("document", "message", "hint"),
    [
        ([], "the settings are no mapping of names to values", "known are image, name"),
        ({}, "no driver image is given", "--image"),
        ({"imge": "x"}, "unknown setting 'imge'", "did you mean image?"),
        ({"zzz": 1}, "unknown setting 'zzz'", "known are image, name"),
        ({1: 1}, "unknown setting '1'", "known are"),
        ({"image": 5}, "image is '5'", "a text"),
        ({"image": "a b"}, "image is 'a b'", "a pull spec"),
        ({"image": "x", "env": {"A": 1}}, "env is \"{'A': 1}\"", "quotes"),
        ({"image": "x", "env": {"A B": "1"}}, "env is 'A B'", "names of environment variables"),
        ({"image": "x", "env": {"NVDRIVER_TRUST": "1"}}, "env sets NVDRIVER_TRUST", "trust is the field"),
        ({"image": "x", "rdma": "true"}, "rdma is 'true'", "true or false"),
        ({"image": "x", "pull_secrets": "a"}, "pull_secrets is 'a'", "a list"),
        ({"image": "x", "resources": []}, "resources is '[]'", "a mapping"),
        ({"image": "x", "prebuild_user": True}, "prebuild_user is 'True'", "a whole number"),
        ({"image": "x", "namespace": "A"}, "namespace is 'A'", "a DNS label"),
        ({"image": "x", "name": "a" * 21}, f"name is {'a' * 21!r}", "at most 20"),
        ({"image": "x", "parameters": {"../x": ""}}, "parameters is '../x'", "file names"),
    ],
)
def test_wrong_settings(document: Any, message: str, hint: str) -> None:
    """What is unknown or of another kind is refused with its value, and the near name is offered."""
    with pytest.raises(UsageError) as caught:
        driver_settings(document)
    assert message in caught.value.message and hint in str(caught.value.hint)


def test_settings() -> None:
    """A document in JSON's terms gives the driver; null is as if not given."""
    document = {"image": IMAGE, "pull_secrets": ["a"], "env": {"A": "1"}, "trust": None, "rdma": True}
    expected = Driver(IMAGE, pull_secrets=("a",), env={"A": "1"}, rdma=True)
    assert driver_settings(copy.deepcopy(document)) == expected


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=list(DRIVERS))
def test_settings_there_and_back(driver: Driver) -> None:
    """The settings that the controller reads in the cluster are those that it was rendered with."""
    document = settings_document(driver)
    assert driver_settings(json.loads(json.dumps(document))) == driver
    assert list(settings_document(PLAIN)) == ["image"]


def controller(driver: Driver, *overrides: str) -> Any:
    objects = render(plan_for(driver), driver, overrides=dict(each.split("=") for each in overrides))
    return of_kind(objects, "Deployment"), objects


def test_the_controller() -> None:
    """Settings, arguments and probes belong together; without an image for it there is none of it."""
    assert controller(PLAIN)[0] == []
    ((found,), objects) = controller(FULL, f"{V1}=quay.io/mine", f"{V3}=quay.io/other")
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["nvdriver-build", "fleet", "watch"]
    toolkits = ["--toolkit", f"{V1}=quay.io/mine", "--toolkit", f"{V3}=quay.io/other"]
    assert container["args"][-4:] == toolkits
    (path,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "settings")
    (settings,) = (each for each in of_kind(objects, "ConfigMap") if "settings.json" in each["data"])
    assert container["args"][:2] == ["--settings", f"{path}/settings.json"]
    assert driver_settings(json.loads(settings["data"]["settings.json"])) == FULL
    (service,) = of_kind(objects, "Service")
    ((port,), (own,)) = service["spec"]["ports"], container["ports"]
    assert port["targetPort"] == own["name"] == container["livenessProbe"]["httpGet"]["port"]
    assert f":{own['containerPort']}" in container["args"]
    labels = found["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert found["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    accounts = [each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")]
    assert pod["serviceAccountName"] in accounts
    other = controller(evolve(FULL, rdma=False))[0][0]["spec"]["template"]
    assert other["metadata"]["annotations"] != found["spec"]["template"]["metadata"]["annotations"]


def test_the_controller_may_do_nothing_on_its_node() -> None:
    """As OpenShift's SCC restricted-v2 asks for: no user of its own, nothing writable but /tmp."""
    ((found,), objects) = controller(FULL)
    pod = found["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostPID", "hostNetwork", "hostIPC"} & set(pod)
    assert {next(iter(set(each) - {"name"})) for each in pod["volumes"]} == {"configMap", "emptyDir"}
    policy = of_kind(objects, "NetworkPolicy")[-1]["spec"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": "metrics"}]}]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} >= {6443, 5000, 3128, 53}
    bypass = variables(container)["NO_PROXY"]
    assert bypass == "$(KUBERNETES_SERVICE_HOST)"


def test_no_service_becomes_a_setting() -> None:
    """A Service of our name would be in the environment of pods as NVDRIVER_BUILD_FLEET_..., which is no
    setting: `run` would end with exit 2.
    """
    objects = render(plan_for(FULL), FULL)
    assert all(pod["enableServiceLinks"] is False for pod in pods(objects))
    assert of_kind(objects, "Service")[0]["spec"]["clusterIP"] == "None"
