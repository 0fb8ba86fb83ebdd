"""The cluster files against Ray's own schema and providers, a simulated AWS, KubeRay's fields."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from tests.training.faces import ROOT

pytest.importorskip("ray")

AWS = "cluster.yaml"
GCP, LOCAL = "configs/cluster/gcp.yaml", "configs/cluster/local.yaml"
CLUSTERS = [AWS, GCP, LOCAL]
RAYJOB = "configs/cluster/rayjob.yaml"


def read(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / file).read_text()))


def prepared(file: str, **changes: Any) -> dict[str, Any]:
    """As `ray up` has it: defaults filled in, then checked against ray-schema.json."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config({**read(file), **changes})
    validate_config(config)
    return config


def start_commands(config: dict[str, Any]) -> list[str]:
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


@pytest.mark.parametrize("file", CLUSTERS)
def test_cluster_file__passes_rays_schema_and_a_slip_does_not(file: str) -> None:
    prepared(file)
    with pytest.raises(Exception, match="setup_commandz"):
        prepared(file, setup_commandz=[])


@pytest.mark.parametrize("file", CLUSTERS)
def test_cluster_file__is_closed(file: str) -> None:
    """The token is on all nodes, the dashboard on loopback alone, all ports are named."""
    config = prepared(file)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    setups = [config["head_setup_commands"], config["worker_setup_commands"]]
    setups += [
        kind["worker_setup_commands"]
        for kind in config["available_node_types"].values()
        if "worker_setup_commands" in kind
    ]
    for commands in setups:
        assert any("RAY_AUTH_MODE=token" in command for command in commands), commands
    head, worker = start_commands(config)
    assert "--dashboard-host=127.0.0.1" in head
    documented = (ROOT / "docs" / "cluster.md").read_text()
    for command in (head, worker):
        ports = re.findall(r"--([a-z-]*port)=(\d+)", command)
        assert len(ports) >= 8, command
        for name, port in ports:
            assert re.search(rf"^\| .*\b{port}\b", documented, re.MULTILINE), (name, port)


def test_start_commands__are_the_same_everywhere_but_for_labels() -> None:
    """Local nodes find out their label themselves; the clouds' autoscalers hand it to them."""

    def plain(command: str) -> str:
        return re.sub(r" --labels=pool=\$\(.*?\)", "", command)

    found = {file: [plain(line) for line in start_commands(read(file))] for file in CLUSTERS}
    assert found[AWS] == found[GCP] == found[LOCAL]


@pytest.mark.parametrize("file", [AWS, GCP])
def test_cloud__has_nodes_for_each_part_within_limits(file: str) -> None:
    """A head without work, GPU nodes on demand and spot, CPU nodes; none runs unless wanted."""
    from ray._private.label_utils import validate_node_labels

    config = prepared(file)
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: kind for name, kind in kinds.items() if name != config["head_node_type"]}
    found = {
        (kind["labels"]["pool"], kind["labels"]["market"], kind["resources"].get("GPU")) for kind in workers.values()
    }
    assert found == {("gpu", "on-demand", 8), ("gpu", "spot", 8), ("cpu", "spot", None)}
    for kind in workers.values():
        validate_node_labels(kind["labels"])
        assert kind["min_workers"] == 0
        assert 0 < kind["max_workers"] <= config["max_workers"] <= 20


@pytest.mark.parametrize("file", [*CLUSTERS, "configs/cluster/Dockerfile"])
def test_setup__comes_from_the_makefile_alone(file: str) -> None:
    """torch is pinned in one place, so a node cannot have another one than the tests."""
    text = (ROOT / file).read_text()
    assert "node-environment" in text
    assert not re.search(r"torch\s*[=<>]=", text)
    recipe = (ROOT / "Makefile").read_text().partition("$(VENV)/.node-ready: ")[2]
    # What the recipe reads has to reach the node with it.
    for needed in recipe.partition("\n")[0].split():
        assert re.search(rf"lafs_ray/{needed}: {needed}|COPY .*{needed}", text), needed
    torch, dependencies = recipe.index("torch==$(TORCH)"), recipe.index("$(DEPENDENCIES)")
    assert torch < dependencies


def stack_template() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Reads CloudFormation's tags as plain values."""

    Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))
    return dict(yaml.load((ROOT / "configs/cluster/aws-account.yaml").read_text(), Loader))


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An account with the stack of aws-account.yaml, simulated by moto."""
    moto = pytest.importorskip("moto")
    pytest.importorskip("moto.cloudformation", reason="needs openapi-spec-validator")
    import boto3

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the new key below ~/.ssh
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    with moto.mock_aws():
        vpc = boto3.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
        subnet = boto3.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
        settings = {"Bucket": "lafs-test", "Vpc": vpc, "GpuSubnet": subnet, "MyAddress": "198.51.100.7/32"}
        boto3.client("cloudformation").create_stack(
            StackName="lafs-ray",
            TemplateBody=(ROOT / "configs/cluster/aws-account.yaml").read_text(),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in settings.items()],
        )
        yield boto3


def test_aws__ray_launches_every_kind_of_node_behind_the_closed_group(aws: Any) -> None:
    """Ray's AWS provider takes the stack's group and roles, and opens nothing of its own."""
    from ray.autoscaler._private.providers import _get_node_provider_cls

    config = prepared(AWS)
    provider_class = _get_node_provider_cls(config["provider"])
    ready = provider_class.bootstrap_config(config)
    provider = provider_class(ready["provider"], ready["cluster_name"])
    for name, kind in ready["available_node_types"].items():
        provider.create_node(dict(kind["node_config"]), {"ray-user-node-type": name}, 1)

    ec2 = aws.client("ec2")
    instances = [
        instance for reservation in ec2.describe_instances()["Reservations"] for instance in reservation["Instances"]
    ]
    found = {
        instance["InstanceType"] + " " + instance.get("InstanceLifecycle", "on demand"): (
            sorted({group["GroupName"] for card in instance["NetworkInterfaces"] for group in card["Groups"]}),
            len(instance["NetworkInterfaces"]) > 1,
            instance["IamInstanceProfile"]["Arn"].rpartition("/")[2],
            instance["MetadataOptions"]["HttpTokens"],
        )
        for instance in instances
    }
    gpu_node = (["lafs-ray"], True, "lafs-ray-node", "required")
    assert found == {
        "m7i.2xlarge on demand": (["lafs-ray"], False, "lafs-ray-head", "required"),
        "p5.48xlarge on demand": gpu_node,
        "p5.48xlarge spot": gpu_node,
        "c7a.16xlarge spot": (["lafs-ray"], False, "lafs-ray-node", "required"),
    }
    groups = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["lafs-ray"]}])
    (group,) = groups["SecurityGroups"]
    rules = [
        (
            rule["IpProtocol"],
            rule.get("FromPort"),
            [cidr["CidrIp"] for cidr in rule["IpRanges"]],
            [pair["GroupId"] for pair in rule["UserIdGroupPairs"]],
        )
        for rule in group["IpPermissions"]
    ]
    assert sorted(rules, key=str) == sorted(
        [("tcp", 22, ["198.51.100.7/32"], []), ("-1", None, [], [group["GroupId"]])], key=str
    )


def test_aws__gpu_nodes_have_an_efa_interface_on_every_network_card(aws: Any) -> None:
    """The first with an address, as AWS's page on a P5's network cards has it; all near each other, and free to send to
    each other past IP. Both kinds of GPU nodes use this template."""
    versions = aws.client("ec2").describe_launch_template_versions(LaunchTemplateName="lafs-ray-p5")
    cards = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["NetworkInterfaces"]
    assert [(card["NetworkCardIndex"], card["DeviceIndex"], card["InterfaceType"]) for card in cards] == [
        (0, 0, "efa"),
        *((number, 1, "efa-only") for number in range(1, 32)),
    ]
    # moto has no part for these.
    resources = stack_template()["Resources"]
    assert resources["GpuNodes"]["Properties"]["LaunchTemplateData"]["Placement"] == {"GroupName": "GpuNodesTogether"}
    assert resources["GpuNodesTogether"]["Properties"] == {"Strategy": "cluster"}
    out = resources["EfaBetweenNodes"]["Properties"]
    assert out["GroupId"] == out["DestinationSecurityGroupId"] == "Nodes.GroupId"
    kinds = read(AWS)["available_node_types"]
    for name in ("gpu", "gpu_spot"):
        assert kinds[name]["node_config"]["LaunchTemplate"] == {"LaunchTemplateName": "lafs-ray-p5"}


def test_aws__roles_reach_the_bucket_and_no_other(aws: Any) -> None:
    iam = aws.client("iam")
    for role in ("lafs-ray-node", "lafs-ray-head"):
        (attached,) = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        arn = attached["PolicyArn"]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        policy = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]
        resources = {rule["Resource"] for rule in policy["Document"]["Statement"]}
        assert resources == {"arn:aws:s3:::lafs-test", "arn:aws:s3:::lafs-test/*"}
    # moto makes the bucket without this part of the template.
    template = (ROOT / "configs/cluster/aws-account.yaml").read_text()
    blocked = set(re.findall(r"^ +(\w+Public\w+): true$", template, re.MULTILINE))
    assert blocked == {"BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"}


def test_aws__what_changes_instances_has_a_condition() -> None:
    """On all resources the head may only read, launch and look up; tags, stops and starts are of this cluster."""
    (policy,) = stack_template()["Resources"]["HeadRole"]["Properties"]["Policies"]
    statements = policy["PolicyDocument"]["Statement"]
    free = {action for one in statements if "Condition" not in one for action in one["Action"]}
    assert free == {"ec2:Describe*", "ec2:RunInstances", "ssm:GetParameters", "iam:GetInstanceProfile"}
    tagging = [one for one in statements if "ec2:CreateTags" in one["Action"]]
    assert len(tagging) == 2
    for one in tagging:
        assert one["Action"] == ["ec2:CreateTags"]
        assert one["Resource"].endswith(":instance/*")
        assert "lafs" in one["Condition"]["StringEquals"].values()


# Fields of KubeRay v1.7.0, helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml, by the path of their owner. Not the
# whole schema: that of pods is Kubernetes' own, and 1.4 MB.
KUBERAY = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy"),
        *("entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId"),
        *("managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML"),
        *("shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate"),
        *("suspend", "ttlSecondsAfterFinished"),
    },
    "spec.rayClusterSpec": {
        *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec"),
        *("gcsFaultToleranceOptions", "headServiceAnnotations", "managedBy", "networkPolicy"),
        *("rayVersion", "suspend", "tlsOptions", "upgradeStrategy", "workerGroupSpecs"),
    },
    "spec.rayClusterSpec.authOptions": {"enableK8sTokenAuth", "mode", "secretName"},
    "spec.rayClusterSpec.networkPolicy": {"head", "mode", "worker", "workerGroups"},
    "spec.rayClusterSpec.headGroupSpec": {
        *("enableIngress", "headService", "ingressOptions", "labels", "rayStartParams"),
        *("resources", "serviceType", "template"),
    },
    "spec.rayClusterSpec.workerGroupSpecs": {
        *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts"),
        *("priority", "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend"),
        "template",
    },
}


def unknown_fields(manifest: dict[str, Any]) -> list[str]:
    found = []
    for path, known in KUBERAY.items():
        owner: Any = manifest
        for name in filter(None, path.split(".")):
            owner = owner[name]
        for item in owner if isinstance(owner, list) else [owner]:
            found += [f"{path}.{name}" for name in item if name not in known]
    return found


def test_rayjob__has_the_fields_of_kuberay_and_no_others() -> None:
    manifest = read(RAYJOB)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert unknown_fields(manifest) == []
    assert manifest["metadata"]["namespace"] == "lafs-ray"
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["replika"] = 1
    assert unknown_fields(manifest) == ["spec.rayClusterSpec.workerGroupSpecs.replika"]


def test_rayjob__is_closed_and_its_groups_hold_what_its_job_asks_for(tmp_path: Path) -> None:
    """The entrypoint's settings are valid, and labels, GPUs and CPUs of the groups suffice."""
    import shlex

    import ray

    from lafs_ray.engine.resources import bundles_of

    spec = read(RAYJOB)["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["networkPolicy"]["mode"] == "DenyAllIngress"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["rayVersion"] == ray.__version__
    groups_of_pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [spec["submitterPodTemplate"]["spec"], *(group["template"]["spec"] for group in groups_of_pods)]
    for pod in pods:
        # What Kubernetes' restricted standard requires; images by digest.
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "@sha256:" in container["image"]
    groups = {
        group["labels"]["pool"]: {
            resource: group["minReplicas"] * int(limits[name])
            for resource, name in (("CPU", "cpu"), ("GPU", "nvidia.com/gpu"))
            if name in (limits := group["template"]["spec"]["containers"][0]["resources"]["limits"])
        }
        for group in cluster["workerGroupSpecs"]
    }
    python, job, file, *overrides = shlex.split(spec["entrypoint"])
    assert (python, Path(job).name) == ("python", "pretrain.py")
    preset = ROOT / file.removeprefix("/home/ray/lafs_ray/")
    wanted = {"gpu": {"CPU": 0.0, "GPU": 0.0}, "cpu": {"CPU": 0.0, "GPU": 0.0}}
    for bundle in bundles_of(load(PretrainConfig, str(preset), overrides)):
        pool = bundle.labels.get("pool", "gpu")
        for resource, amount in bundle.resources.items():
            wanted[pool][resource] += bundle.count * amount
    for pool, resources in wanted.items():
        for resource, amount in resources.items():
            assert amount <= groups[pool].get(resource, 0), (pool, resource)


def test_every_file_of_configs_cluster__is_tested() -> None:
    """Here, and slurm.sbatch in test_slurm.py."""
    files = {f"configs/cluster/{name}" for name in os.listdir(ROOT / "configs/cluster")}
    others = {"aws-account.yaml", "Dockerfile", "slurm.sbatch"}
    assert files == {GCP, LOCAL, RAYJOB, *(f"configs/cluster/{name}" for name in others)}
