"""The template deployed, the policies enforced, and the agent that lets its group go on: all against moto."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from spotckpt.errors import Denied
from tests.agent.harness import HELD_BYTES_PER_S, machine
from tests.cli.command import spotckpt
from tests.deploy.template import DEPLOY, TEMPLATE, properties
from tests.support.groups import GroupServer
from tests.support.imds import INSTANCE_PATH, LIFECYCLE_PATH, Imds, running_imds
from tests.support.proxy import Proxy
from tests.support.rights import allow, enforce, user
from tests.support.servers import REGION, S3Env, running, wait_until

STACK = "resnet"
HOOK = properties()["Group"]["LifecycleHookSpecificationList"][0]
TAGS = "/latest/meta-data/tags/instance"


@pytest.fixture(scope="module")
def cloud() -> Iterator[GroupServer]:
    with running(GroupServer()) as server:
        yield server  # type: ignore[misc]


@pytest.fixture(scope="module")
def stack(cloud: GroupServer) -> str:
    """The template, deployed; its bucket."""
    ec2, formation = cloud.aws("ec2"), cloud.aws("cloudformation")
    network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:2]]
    given = {"VpcId": network, "SubnetIds": ",".join(subnets), "ImageId": ec2.describe_images()["Images"][0]["ImageId"]}
    given["NumInstances"] = "1"
    formation.create_stack(
        StackName=STACK,
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()],
    )
    [made] = formation.describe_stacks(StackName=STACK)["Stacks"]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    groups = cloud.aws("autoscaling")
    # moto knows hooks, but not as a part of a group's definition
    groups.put_lifecycle_hook(AutoScalingGroupName=group_of(cloud), **HOOK)
    return next(output["OutputValue"] for output in made["Outputs"] if output["OutputKey"] == "Bucket")


def group_of(cloud: GroupServer) -> str:
    [group] = cloud.aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    return str(group["AutoScalingGroupName"])


def instances(cloud: GroupServer) -> list[str]:
    [group] = cloud.aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    return [instance["InstanceId"] for instance in group["Instances"]]


def leaving(imds: Imds, cloud: GroupServer) -> None:
    """The metadata of the group's instance when the group ends it."""
    imds.answers |= {
        INSTANCE_PATH: (200, instances(cloud)[0]),
        LIFECYCLE_PATH: (200, "Terminated"),
        f"{TAGS}/aws:autoscaling:groupName": (200, group_of(cloud)),
        f"{TAGS}/spotckpt:lifecycle-hook": (200, HOOK["LifecycleHookName"]),
        "/latest/meta-data/placement/region": (200, REGION),
    }


@pytest.fixture
def imds() -> Iterator[Imds]:
    with running_imds() as served:
        yield served


def environment_of(cloud: GroupServer) -> dict[str, str]:
    """With the region from the metadata, as on an instance."""
    kept = {name: value for name, value in cloud.environment().items() if name != "AWS_DEFAULT_REGION"}
    return {**kept, "AWS_EC2_METADATA_DISABLED": "false"}


def test_the_stack_is_made_with_its_instance(cloud, stack):
    assert len(instances(cloud)) == 1
    [profile] = cloud.aws("iam").list_instance_profiles()["InstanceProfiles"]
    assert len(profile["Roles"]) == 1
    made = {policy["PolicyName"].split("-")[1] for policy in cloud.aws("iam").list_policies(Scope="Local")["Policies"]}
    assert made == {"TrainerPolicy", "PrunePolicy"}
    assert stack in [bucket["Name"] for bucket in cloud.aws("s3").list_buckets()["Buckets"]]


def test_the_group_is_let_go_on_after_the_commit_and_not_before(cloud, stack, imds, tmp_path):
    env = S3Env(cloud.url, stack, cloud.environment(), cloud.client)
    uri = f"s3://{stack}/runs/resnet"
    with machine(tmp_path) as here, Proxy(cloud.url, bytes_per_s=HELD_BYTES_PER_S) as proxy:
        agent = here.agent(f"--metadata-endpoint={imds.endpoint}", **environment_of(cloud))
        trainer = here.trainer(**env.behind(proxy.url).environment)
        trainer.open(uri)
        snapshot = trainer.stage(uri, 1, numbers=250_000)["snapshot"]
        leaving(imds, cloud)
        trainer.wait_event("notice")
        assert len(instances(cloud)) == 1
        assert not env.keys("runs/resnet/snapshots/")
        proxy.bytes_per_s = None
        trainer.wait_committed(snapshot)
        time.sleep(1.5)  # committed, but the trainer has not left: it may have another snapshot
        assert len(instances(cloud)) == 1
        # who waits until the notice has lapsed holds nobody up
        here.trainer(**env.environment).start_open(f"s3://{stack}/runs/other")
        trainer.call("close", uri=uri, deadline_s=60)
        wait_until(lambda: not instances(cloud), what=f"the group goes on: {agent.log_text}")
        assert env.keys("runs/resnet/snapshots/") == [f"runs/resnet/snapshots/{snapshot}.json"]
        assert "spotckpt-commit of group resnet lets i-" in agent.log_text


def test_what_goes_wrong_is_said_and_the_agent_goes_on(cloud, stack, imds, tmp_path):
    leaving_nobody = {INSTANCE_PATH: (200, "i-00000000000000000"), LIFECYCLE_PATH: (200, "Terminated")}
    imds.answers |= leaving_nobody
    with machine(tmp_path) as here:
        options = (f"--metadata-endpoint={imds.endpoint}",)
        agent = here.agent(*options, **environment_of(cloud))
        wait_until(lambda: "not completed: unknown is the group (tag aws:auto" in agent.log_text, what=agent.log_text)
        assert here.status()["runs"] == []
        agent.kill()
        imds.answers |= {
            f"{TAGS}/aws:autoscaling:groupName": (200, group_of(cloud)),
            f"{TAGS}/spotckpt:lifecycle-hook": (200, HOOK["LifecycleHookName"]),
            "/latest/meta-data/placement/region": (200, REGION),
        }
        agent = here.agent(*options, **environment_of(cloud))
        said = "is not completed: An error occurred (ValidationError)"
        wait_until(lambda: said in agent.log_text and "No active Lifecycle Action" in agent.log_text, what=said)
        assert here.status()["runs"] == []


@pytest.fixture(scope="module")
def guarded() -> Iterator[GroupServer]:
    """Another moto, which asks who may do what."""
    with running(GroupServer()) as server:
        yield server  # type: ignore[misc]


def policies(*names: str) -> dict[str, str]:
    """The policy files of those names, for the bucket `guarded`."""
    return {name: (DEPLOY / f"aws/{name}-policy.json").read_text().replace("BUCKET", "guarded") for name in names}


def test_the_policies_are_enough_and_no_more(guarded, tmp_path):
    guarded.client.create_bucket(Bucket="guarded")
    keys = {
        "trainer": user(guarded, "trainer", **policies("trainer")),
        "pruner": user(guarded, "pruner", **policies("trainer", "prune")),
    }
    enforce(guarded, after="0")

    def s3(who: str):  # type: ignore[no-untyped-def]
        guarded.access_key, guarded.secret_key = keys[who].values()
        return guarded.aws("s3")

    def denied(call, **given: str) -> bool:  # type: ignore[no-untyped-def]
        try:
            call(Bucket="guarded", **given)
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
            return True
        return False

    uri = "s3://guarded/runs/resnet"
    with machine(tmp_path, {**guarded.environment(), **keys["trainer"]}) as here:
        here.agent()
        trainer = here.trainer()
        trainer.open(uri)
        ids = []
        for numbers in (5_000_000, 1000):  # 20 MB go in parts
            ids.append(trainer.stage(uri, 1, numbers=numbers, wait_s=60)["snapshot"])
            trainer.wait_committed(ids[-1])
        assert trainer.call("close", uri=uri, deadline_s=60)["acknowledged"]
    older, claim = f"runs/resnet/snapshots/{ids[0]}.json", "runs/resnet/attempts/0001.json"
    trainers, pruners = s3("trainer"), s3("pruner")
    assert denied(trainers.put_object, Key="elsewhere/x", Body="")
    assert denied(trainers.get_object, Key="elsewhere/x")
    assert denied(trainers.delete_object, Key=older)
    assert denied(pruners.delete_object, Key=claim)
    prune = ("prune", uri, "--keep-last", "1")
    assert spotckpt(*prune, **{**guarded.environment(), **keys["trainer"]}).status == Denied.exit_status
    assert trainers.head_object(Bucket="guarded", Key=older)
    # moto looks for the right to delete many objects at the bucket, S3 at each object, as above
    at_bucket = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::guarded"}
    enforce(guarded, after="inf")
    allow(guarded.aws("iam"), "pruner", "moto", json.dumps({"Version": "2012-10-17", "Statement": [at_bucket]}))
    enforce(guarded, after="0")
    done = spotckpt(*prune, **{**guarded.environment(), **keys["pruner"]})
    assert done.status == 0, done.err
    left = [item["Key"] for item in trainers.list_objects_v2(Bucket="guarded", Prefix="runs/resnet/")["Contents"]]
    assert older not in left
    assert {claim, f"runs/resnet/snapshots/{ids[1]}.json"} <= set(left)
