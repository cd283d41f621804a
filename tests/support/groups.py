"""moto with what it lacks: CompleteLifecycleAction, which lets an instance go that its group's hook holds.

Run as a program it is that server; `GroupServer` is it as a process of the tests.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import boto3

from tests.support.servers import REGION, MotoServer, spawn


class GroupServer(MotoServer):
    """moto with Auto Scaling groups whose instances can be let go."""

    def _spawn(self) -> subprocess.Popen[bytes]:
        return spawn([sys.executable, "-W", "ignore", "-m", __name__, "-H", "127.0.0.1", "-p", str(self.port)])

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AWS_ENDPOINT_URL": self.url}

    def aws(self, service: str) -> Any:
        """A boto3 client of any of its services."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )


def main() -> None:
    from moto.autoscaling.exceptions import ValidationError
    from moto.autoscaling.responses import AutoScalingResponse
    from moto.core.responses import ActionResult
    from moto.server import main as serve

    def complete_lifecycle_action(self: AutoScalingResponse) -> ActionResult:
        group, hook = self._get_param("AutoScalingGroupName"), self._get_param("LifecycleHookName")
        instance, backend = self._get_param("InstanceId"), self.autoscaling_backend
        there = {state.instance_id for state in backend.autoscaling_groups[group].instance_states}
        if not backend.describe_lifecycle_hooks(group, [hook]) or instance not in there:
            raise ValidationError(f"No active Lifecycle Action found with instance ID {instance}")
        backend.detach_instances(group, [instance], should_decrement=True)
        return ActionResult({})

    AutoScalingResponse.complete_lifecycle_action = complete_lifecycle_action
    serve(sys.argv[1:])


if __name__ == "__main__":
    main()
