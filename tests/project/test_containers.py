"""The image, the Compose file, the Kubernetes manifests and the workflow are valid, and agree."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import create_app
from app.settings import ApiKey, Settings, env_name

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "ops" / "kubernetes").glob("*.yaml"))
NAMES = {env_name(field) for field in fields(Settings)}
# Longer than a worker takes to end: graceful_timeout in gunicorn.conf.py.
MIN_GRACE_SECONDS = 10


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is missing; requirements/dev.txt has it")


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (
        document
        for document in map(yaml.safe_load, (path.read_text() for path in MANIFESTS))
        if document["kind"] == kind
    )
    return found


@pytest.mark.parametrize(
    ("schema", "name"),
    [("compose-spec", "compose.yaml"), ("github-workflows", ".github/workflows/ci.yml")],
)
def test_file__matches_the_schema_of_its_kind(schema: str, name: str) -> None:
    needs("check_jsonschema")
    words = ("-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", name)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_manifests__match_the_schemas_of_kubernetes() -> None:
    needs("kubernetes_validate")
    import kubernetes_validate

    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        kubernetes_validate.validate(manifest(kind), "1.37", strict=True)


def test_manifests__select_the_pods_of_the_deployment_and_all_are_listed() -> None:
    labels = {"app.kubernetes.io/name": "cohort-receiver"}
    deployment = manifest("Deployment")["spec"]
    assert deployment["template"]["metadata"]["labels"] == labels
    assert deployment["selector"]["matchLabels"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    service, monitor = manifest("Service"), manifest("ServiceMonitor")
    assert service["spec"]["selector"] == labels
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    listed = manifest("Kustomization")["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == [path.name for path in MANIFESTS]


def test_pod__runs_without_privileges_and_is_probed_where_the_service_replies() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert {entry["name"] for entry in container["env"]} <= NAMES
    grace = pod["terminationGracePeriodSeconds"]
    assert grace >= int(container["lifecycle"]["preStop"]["exec"]["command"][1]) + MIN_GRACE_SECONDS
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    paths = {rule.rule for rule in app.url_map.iter_rules()}
    probes = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness")
    }
    assert probes == {"liveness": "/healthz", "readiness": "/readyz"}
    assert {*probes.values(), manifest("ServiceMonitor")["spec"]["endpoints"][0]["path"]} <= paths


def test_compose__service_and_store__are_as_the_documentation_says() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services["service"]["environment"].keys() <= NAMES
    assert services["service"]["read_only"] is True
    assert services["service"]["stop_grace_period"] == "15s"
    store = " ".join(services["store"]["command"])
    assert "--appendonly yes" in store
    assert "--maxmemory-policy noeviction" in store
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).is_file(), source
    config = ROOT / "ops" / "compose" / "prometheus.yml"
    (rules,) = yaml.safe_load(config.read_text())["rule_files"]
    assert (config.parent / rules).resolve() == ROOT / "ops" / "alerts.yml"


def test_image__is_built_from_pinned_wheels_and_runs_as_nobody() -> None:
    build, final = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1:]
    assert "--only-binary :all: --require-hashes --requirement requirements/service.txt" in build
    # Of the packages and of Python itself; the times of files may change in an image.
    for stage in (build, final):
        assert "compileall -q --invalidation-mode unchecked-hash" in stage
    user = re.search(r"^USER (\d+)", final, re.M)
    assert user
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    assert int(user[1]) == pod["securityContext"]["runAsUser"] > 0
    assert 'CMD ["cohort-receiver", "serve"]' in final
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", build, re.M))
    names = {name for line in copied for name in line.split()}
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert names == kept
    assert all((ROOT / name).exists() for name in names)


def test_workflow__tries_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]
    versions = jobs["tests"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert f"python_requires = >={versions[0]}" in (ROOT / "setup.cfg").read_text()
    assert jobs["tests"]["steps"][-1]["env"] == {"CI": "false"}
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert {".ci/run", "make test", "make package", ".ci/image"} <= set(commands)
