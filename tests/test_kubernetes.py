"""deploy/kubernetes: valid by Kubernetes' own schemas, and in step with the service and the images."""

import shutil
import subprocess
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as FieldError

from serving import metrics
from serving.settings import Settings, variable
from tests.support.dockerfile import Dockerfile
from tests.support.kustomize import Resource, build, containers
from tests.support.walker import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = {"cpu": "Dockerfile", "gpu": "Dockerfile.cuda"}
VERSIONS = ("1.30", "1.37")
"""Versions of Kubernetes: the oldest that is promised, and the newest whose schemas are here."""


class Strict(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Labels(Strict):
    """A selector."""

    match_labels: dict[str, str] = Field(alias="matchLabels", min_length=1)


class Endpoint(Strict):
    """What Prometheus reads."""

    port: str
    path: str = Field(pattern="^/")
    interval: str = Field(pattern=r"^\d+(ms|s|m|h)$")


class MonitorSpec(Strict):
    """The fields of a ServiceMonitor that are used here."""

    selector: Labels
    endpoints: list[Endpoint] = Field(min_length=1)


class Metadata(Strict):
    """A name, and labels by which a Prometheus may choose its monitors."""

    name: str
    labels: dict[str, str]


class ServiceMonitor(Strict):
    """No package ships the schemas of the Prometheus operator, so the used fields are written out here."""

    api: Literal["monitoring.coreos.com/v1"] = Field(alias="apiVersion")
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: MonitorSpec


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def resources(overlay: str) -> list[Resource]:
    return build(FOLDER / "overlays" / overlay)


def of_kind(resources: list[Resource], kind: str) -> Resource:
    (found,) = [each for each in resources if each["kind"] == kind]
    return found


def check(resource: Resource, version: str) -> None:
    """Raises an error of the validator for a field that is unknown, missing or of another type."""
    if resource["kind"] == "ServiceMonitor":
        ServiceMonitor.model_validate(resource)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(resources: list[Resource], version: str) -> None:
    kinds = {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceMonitor"}
    assert {each["kind"] for each in resources} == kinds | {"ServiceAccount", "ConfigMap"}
    for resource in resources:
        check(resource, version)


def test_a_misspelt_field_of_every_kind_is_found(resources: list[Resource]) -> None:
    for resource in resources:
        wrong = deepcopy(resource)
        wrong.get("spec", wrong)["podz"] = 1
        with pytest.raises((ValidationError, FieldError), match="podz"):
            check(wrong, VERSIONS[-1])


def test_the_pod_may_do_nothing_that_the_service_does_not_need(resources: list[Resource]) -> None:
    pod, (container,) = of_kind(resources, "Deployment")["spec"]["template"]["spec"], containers(resources)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_pod_fits_its_image(overlay: str, resources: list[Resource]) -> None:
    file, pod = Dockerfile.read(OVERLAYS[overlay]), of_kind(resources, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert file.texts("USER") == [f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"]
    assert file.texts("EXPOSE") == [str(container["ports"][0]["containerPort"])]
    version = file.variables("LABEL")["org.opencontainers.image.version"]
    assert container["image"] == f"mosa-deploy:{version}" + {"cpu": "", "gpu": "-cuda"}[overlay]
    mounted = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
    assert mounted == {"/tmp"}
    assert all(
        PurePosixPath(file.variables()[name]).is_relative_to("/tmp") for name in ("HOME", "TMPDIR", "BENTOML_HOME")
    )


def test_what_the_pod_sets_is_read_by_the_service(resources: list[Resource]) -> None:
    (container,) = containers(resources)
    settings = of_kind(resources, "ConfigMap")
    known = {variable(name) for name in Settings.model_fields}
    known |= {f"{variable(name)}_FILE" for name in ("api_keys", "admin_keys")}
    names = {*settings["data"], *(each["name"] for each in container["env"])}
    assert {name for name in names if name.startswith("MOSA_")} <= known
    assert container["envFrom"][0] == {"configMapRef": {"name": settings["metadata"]["name"]}}
    (mount,) = [each["mountPath"] for each in container["volumeMounts"] if each.get("readOnly")]
    files = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    assert {name: PurePosixPath(path).parent for name, path in files.items()} == dict.fromkeys(
        ("MOSA_API_KEYS_FILE", "MOSA_ADMIN_KEYS_FILE"), PurePosixPath(mount)
    )
    # A name `mosa` would otherwise become variables that look like settings.
    assert of_kind(resources, "Deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_a_pod_has_the_time_to_finish_what_it_began(resources: list[Resource]) -> None:
    pod, (container,) = of_kind(resources, "Deployment")["spec"]["template"]["spec"], containers(resources)
    *_, waits = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = float(of_kind(resources, "ConfigMap")["data"]["MOSA_DRAIN_S"])
    assert pod["terminationGracePeriodSeconds"] >= float(waits) + drain + 5


def test_probes_ask_the_routes_that_are_meant(resources: list[Resource]) -> None:
    (container,) = containers(resources)
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


def test_everything_points_at_the_pods(resources: list[Resource]) -> None:
    deployment, service = of_kind(resources, "Deployment"), of_kind(resources, "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert of_kind(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    monitor = of_kind(resources, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    (container,) = containers(resources)
    assert monitor["endpoints"][0]["port"] == port["name"]
    assert port["targetPort"] in {each["name"] for each in container["ports"]}
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert all(each["labelSelector"]["matchLabels"] == labels for each in spread)


def test_the_autoscaler_watches_a_metric_that_the_service_has(resources: list[Resource]) -> None:
    scaler = of_kind(resources, "HorizontalPodAutoscaler")["spec"]
    deployment = of_kind(resources, "Deployment")
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    (metric,) = [each["pods"]["metric"]["name"] for each in scaler["metrics"]]
    assert f"# TYPE {metric} gauge" in metrics.page().decode()
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert metric in page[page.index("rules:") :]


def test_a_gpu_is_asked_for_where_the_image_needs_one(overlay: str, resources: list[Resource]) -> None:
    (container,) = containers(resources)
    assert container["resources"]["limits"].get("nvidia.com/gpu") == {"cpu": None, "gpu": "1"}[overlay]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_makes_the_same_of_the_folder(overlay: str, resources: list[Resource]) -> None:
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    made = [*yaml.safe_load_all(done.stdout)]
    (settings,) = [each["metadata"]["name"] for each in made if each["kind"] == "ConfigMap"]
    # Its name ends with a digest of its content, so that a change of a setting starts new pods.
    text = yaml.safe_dump_all(made).replace(settings, settings.rpartition("-")[0])
    assert sorted(yaml.safe_load_all(text), key=key) == sorted(resources, key=key)


def key(resource: Resource) -> Any:
    return resource["kind"]


def test_the_folder_is_whole() -> None:
    named = {path for each in FOLDER.rglob("kustomization.yaml") for path in files_of(each)}
    assert named == {path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"}


def files_of(kustomization: Path) -> set[Path]:
    wanted = yaml.safe_load(kustomization.read_text())
    names = [*wanted["resources"], *(patch["path"] for patch in wanted.get("patches", ()))]
    return {path for name in names if (path := kustomization.parent / name).is_file()}
