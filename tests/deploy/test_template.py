"""What can be said of the template without any cloud: linters, schemas, and what moto does not keep."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.deploy.template import DEPLOY, TEMPLATE, properties, without_functions

RESOURCES = properties()
USER_DATA = RESOURCES["LaunchTemplate"]["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"]


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_cloudformation_finds_nothing_wrong():
    found = tool("cfn-lint", "--include-checks", "I", "--", str(TEMPLATE))
    assert found.returncode == 0, found.stdout


def test_kubernetes_takes_the_job():
    found = tool("kubernetes-validate", "--strict", "--quiet", str(DEPLOY / "containers/job.yaml"))
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr


def test_cloud_init_takes_the_user_data():
    """The schema is cloud-init 22.4.2's own, of cloudinit/config/schemas (Apache License 2.0 or GPL 3)."""
    with gzip.open(Path(__file__).with_name("cloud-config-schema.json.gz")) as file:
        schema = json.load(file)
    assert USER_DATA.startswith("#cloud-config\n")
    names = set(re.findall(r"\$\{(.*?)\}", USER_DATA))
    assert names == {"Run", "Command", "Bucket", "AWS::Region"}
    config = yaml.safe_load(re.sub(r"\$\{.*?\}", "x", USER_DATA))
    jsonschema.Draft4Validator(schema).validate(config)
    # other keys, misspelt ones say, the schema lets pass
    assert list(config) == ["package_update", "packages", "write_files", "runcmd"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(schema).validate({**config, "packages": {"python3-venv": True}})


def test_the_user_data_runs_what_is_there():
    commands = yaml.safe_load(re.sub(r"\$\{.*?\}", "x", USER_DATA))["runcmd"]
    [python] = [re.fullmatch(r"\S+ -c '(.*)'", command)[1] for command in commands if " -c '" in command]
    compile(python, "runcmd", "exec")
    for path in re.findall(r"/opt/spotckpt-src/(\S+)", "\n".join(commands)):
        assert (DEPLOY.parent / path).exists(), path
    for unit in re.findall(r"(spotckpt-\S+?)(?:@x)?\.service", commands[-1]):
        assert list(DEPLOY.glob(f"systemd/{unit}*.service")), unit


def test_the_bucket_keeps_hides_and_expires():
    bucket = RESOURCES["Bucket"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    [encryption] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    rules = bucket["LifecycleConfiguration"]["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert any(rule.get("AbortIncompleteMultipartUpload") == {"DaysAfterInitiation": 2} for rule in rules)
    assert any(rule.get("NoncurrentVersionExpiration") == {"NoncurrentDays": 7} for rule in rules)
    # a rule that expired current versions would delete snapshots
    assert not any(name.startswith("Expiration") or name == "Transitions" for rule in rules for name in rule)


def test_the_bucket_talks_tls_only():
    [statement] = RESOURCES["BucketPolicy"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert len(statement["Resource"]) == 2


def test_instances_ask_their_metadata_with_a_token_also_from_containers():
    options = RESOURCES["LaunchTemplate"]["LaunchTemplateData"]["MetadataOptions"]
    assert options["HttpTokens"] == "required"
    assert options["HttpPutResponseHopLimit"] == 2
    assert options["InstanceMetadataTags"] == "enabled"


def test_the_group_is_of_spot_instances_that_are_replaced_early():
    group = RESOURCES["Group"]
    distribution = group["MixedInstancesPolicy"]["InstancesDistribution"]
    assert distribution["OnDemandBaseCapacity"] == distribution["OnDemandPercentageAboveBaseCapacity"] == 0
    assert group["CapacityRebalance"] is True
    assert len(group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]) == 3
    [hook] = group["LifecycleHookSpecificationList"]
    assert hook["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING"
    tags = {tag["Key"]: tag for tag in group["Tags"]}
    assert tags["spotckpt:lifecycle-hook"]["Value"] == hook["LifecycleHookName"]
    assert tags["spotckpt:lifecycle-hook"]["PropagateAtLaunch"] is True


@pytest.mark.parametrize(("resource", "name"), [("TrainerPolicy", "trainer"), ("PrunePolicy", "prune")])
def test_the_template_gives_the_rights_of_the_policy_files(resource, name):
    written = json.loads((DEPLOY / f"aws/{name}-policy.json").read_text())
    assert without_functions(RESOURCES[resource]["PolicyDocument"]) == written


def test_only_who_prunes_may_delete_and_never_an_attempt():
    trainer, prune = ((DEPLOY / f"aws/{name}-policy.json").read_text() for name in ("trainer", "prune"))
    assert "Delete" not in trainer
    assert "attempts" not in prune
    assert RESOURCES["Role"]["ManagedPolicyArns"] == [{"Ref": "TrainerPolicy"}]


def test_the_job_leaves_time_and_room_to_save():
    job = yaml.safe_load((DEPLOY / "containers/job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"] == ["spotckpt", "exec", "--sigterm-grace", "100s", "--"]
    assert 100 < pod["terminationGracePeriodSeconds"] < 120
    [shm] = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]


def test_the_readmes_commands_are_shell():
    blocks = re.findall(r"```bash\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        found = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=60, check=False)
        assert (found.returncode, found.stderr) == (0, ""), block


def test_the_image_begins_with_exec_and_copies_what_is_there():
    dockerfile = (DEPLOY / "containers/Dockerfile").read_text()
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    assert json.loads(entry) == ["spotckpt", "exec", "--sigterm-grace", "100s", "--"]
    kept = (DEPLOY / "containers/Dockerfile.dockerignore").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        for name in line.split():
            assert (DEPLOY.parent / name).exists()
            assert f"!{name}\n" in kept
