"""cluster.yaml and the KubeRay manifests, checked offline against what will read them."""

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from serve.settings import Settings

ROOT = Path(__file__).parent.parent
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "docs" / "kuberay").glob("*.yaml")}


def test_ray_accepts_cluster_yaml() -> None:
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_would_refuse_a_mistyped_key() -> None:
    mistyped = {**copy.deepcopy(CLUSTER), "max_worker": 8}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(mistyped))


def test_ray_accepts_the_variant_for_ones_own_machines() -> None:
    text = (ROOT / "cluster.yaml").read_text().partition("# On machines of your own")[2]
    variant = yaml.safe_load("\n".join(line[4:] for line in text.splitlines() if line.startswith("#   ")))
    replaced = ("head_node_type", "available_node_types", "max_workers")
    config = {name: value for name, value in copy.deepcopy(CLUSTER).items() if name not in replaced} | variant
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == len(variant["provider"]["worker_ips"])


def test_workers_are_woken_by_trials_alone_and_the_head_runs_none() -> None:
    types = CLUSTER["available_node_types"]
    head = types[CLUSTER["head_node_type"]]
    workers = [node for name, node in types.items() if name != CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert workers
    for worker in workers:
        assert worker["min_workers"] == 0 < worker["max_workers"]
        assert worker["resources"]["GPU"] >= 1 and worker["resources"]["CPU"] >= 1
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_cluster_is_closed_to_strangers() -> None:
    head, worker = CLUSTER["head_start_ray_commands"][-1], CLUSTER["worker_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token ray start" in head and "RAY_AUTH_MODE=token ray start" in worker
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in head


def test_the_shells_of_setup_and_start_can_be_parsed() -> None:
    for part in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in CLUSTER[part]:
            subprocess.run(["bash", "-n", "-c", command], check=True)


def test_images_have_the_ray_that_the_project_is_tested_with() -> None:
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    version = pinned.removeprefix("ray==")
    assert version == ray.__version__
    assert f":{version}-" in CLUSTER["docker"]["image"] and f":{version}-" in CLUSTER["docker"]["head_image"]
    for spec in map(cluster_spec, MANIFESTS.values()):
        assert spec["rayVersion"] == version
    assert f"rayproject/ray:{version}-" in (ROOT / "docs" / "clusters.md").read_text()


# The fields that KubeRay's custom resources have and need, from its API reference (ray.io/v1, versions 1.6 and 1.7).
# Pod templates are Kubernetes' own; of those only what we use is listed.
POD_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "additionalProperties": False,
            "properties": {
                "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
                "tolerations": {"type": "array"},
                "volumes": {"type": "array", "items": {"required": ["name", "persistentVolumeClaim"]}},
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "required": ["name", "image", "resources"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "image": {"type": "string"},
                            "env": {"type": "array", "items": {"required": ["name"]}},
                            "volumeMounts": {"type": "array", "items": {"required": ["name", "mountPath"]}},
                            "resources": {
                                "required": ["requests", "limits"],
                                "additionalProperties": {
                                    "type": "object",
                                    "additionalProperties": {"type": "string"},
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}
START_PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
CLUSTER_SPEC = {
    "type": "object",
    "required": ["headGroupSpec", "workerGroupSpecs", "rayVersion", "authOptions"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"type": "string"},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"idleTimeoutSeconds": {"type": "integer"}},
        },
        "authOptions": {
            "type": "object",
            "required": ["mode"],
            "additionalProperties": False,
            "properties": {"mode": {"enum": ["token"]}},
        },
        "headGroupSpec": {
            "type": "object",
            "required": ["template", "rayStartParams"],
            "additionalProperties": False,
            "properties": {"template": POD_TEMPLATE, "rayStartParams": START_PARAMS},
        },
        "workerGroupSpecs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                "additionalProperties": False,
                "properties": {
                    "groupName": {"type": "string"},
                    "replicas": {"type": "integer"},
                    "minReplicas": {"type": "integer"},
                    "maxReplicas": {"type": "integer"},
                    "rayStartParams": START_PARAMS,
                    "template": POD_TEMPLATE,
                },
            },
        },
    },
}
SPECS: dict[str, dict[str, Any]] = {
    "RayJob": {
        "type": "object",
        "required": ["entrypoint", "rayClusterSpec"],
        "additionalProperties": False,
        "properties": {
            "entrypoint": {"type": "string"},
            "runtimeEnvYAML": {"type": "string"},
            "backoffLimit": {"type": "integer"},
            "shutdownAfterJobFinishes": {"type": "boolean"},
            "ttlSecondsAfterFinished": {"type": "integer"},
            "rayClusterSpec": CLUSTER_SPEC,
        },
    },
    "RayService": {
        "type": "object",
        "required": ["serveConfigV2", "rayClusterConfig"],
        "additionalProperties": False,
        "properties": {"serveConfigV2": {"type": "string"}, "rayClusterConfig": CLUSTER_SPEC},
    },
}


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec["rayClusterSpec" if manifest["kind"] == "RayJob" else "rayClusterConfig"]


def test_there_is_a_manifest_for_the_sweep_and_one_for_the_service() -> None:
    assert {name: manifest["kind"] for name, manifest in MANIFESTS.items()} == {
        "rayjob": "RayJob",
        "rayservice": "RayService",
    }


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_have_the_fields_of_their_custom_resource(name: str) -> None:
    manifest = MANIFESTS[name]
    assert manifest["apiVersion"] == "ray.io/v1" and manifest["metadata"]["name"]
    jsonschema.validate(manifest["spec"], SPECS[manifest["kind"]])
    spec = cluster_spec(manifest)
    for pod in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        inner = pod["template"]["spec"]
        mounted = {mount["name"] for container in inner["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in inner.get("volumes", [])}
        for container in inner["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"], "Ray counts on all of it"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_services_settings_are_settings_and_fit_its_workers() -> None:
    (application,) = yaml.safe_load(MANIFESTS["rayservice"]["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "serve.config"
    settings = Settings.model_validate(application["args"])
    (group,) = cluster_spec(MANIFESTS["rayservice"])["workerGroupSpecs"]
    assert settings.max_replicas == group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    assert settings.cpus_per_replica is not None
    assert settings.cpus_per_replica <= int(worker["resources"]["limits"]["cpu"]), "a replica fits a worker"


def test_the_jobs_entrypoint_begins_a_sweep_and_then_goes_on_with_it(tmp_path: Path) -> None:
    results, home = tmp_path / "results", tmp_path / "home"
    entrypoint = MANIFESTS["rayjob"]["spec"]["entrypoint"]
    entrypoint = entrypoint.replace("/results", str(results))
    (home / "patchwork" / "sweeps").mkdir(parents=True)
    (home / "patchwork" / "sweeps" / "patch_size.py").write_text(
        "import pathlib, sys\n"
        f"run = pathlib.Path({str(results)!r}, 'patch_size', 'first')\n"
        "run.mkdir(parents=True, exist_ok=True)\n"
        "(run / 'sweep.json').touch()\n"
        "print(*sys.argv[1:])\n"
    )
    told = [
        subprocess.run(
            entrypoint, shell=True, capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(home)}
        ).stdout.strip()
        for _ in range(2)
    ]
    assert told == [f"--storage {results} --name first", f"--resume {results}/patch_size/first"]
