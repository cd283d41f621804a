"""Lets the Auto Scaling group end this instance: completes the lifecycle action that holds its termination.

The group waits for that (or for the hook's time-out) between the word `Terminated` in the instance's metadata and the
end. Source: Amazon EC2 Auto Scaling User Guide, "Amazon EC2 Auto Scaling lifecycle hooks".
"""

from __future__ import annotations

import logging
import os
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotckpt.agent.options import AgentOptions
from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.notices.ec2 import Ec2Metadata

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_LOG = logging.getLogger(__name__)

GROUP_TAG = "aws:autoscaling:groupName"
HOOK_TAG = "spotckpt:lifecycle-hook"
_TAGS = "/latest/meta-data/tags/instance"
_LIMIT_S = 60.0
_LONGEST_PAUSE_S = 10.0
_THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded")


@dataclass(frozen=True)
class Held:
    """What holds the termination of this instance."""

    instance: str
    group: str
    hook: str
    region: str

    @property
    def missing(self) -> str:
        """What nobody told, or empty."""
        names = {"instance": "the instance's id", "group": f"the group (tag {GROUP_TAG}, or --auto-scaling-group)"}
        names |= {"hook": f"its lifecycle hook (tag {HOOK_TAG}, or --lifecycle-hook)", "region": "the region"}
        return ", ".join(told for name, told in names.items() if not getattr(self, name))


def find_held(options: AgentOptions, endpoint: str) -> Held:
    """What the options say, and for the rest what the instance's metadata do: tags, if they are shown there."""
    metadata = Ec2Metadata(endpoint)
    try:
        return Held(
            metadata.text("/latest/meta-data/instance-id"),
            options.auto_scaling_group or metadata.text(f"{_TAGS}/{GROUP_TAG}"),
            options.lifecycle_hook or metadata.text(f"{_TAGS}/{HOOK_TAG}"),
            os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
            or metadata.text("/latest/meta-data/placement/region"),
        )
    finally:
        metadata.close()


def depart(options: AgentOptions, endpoint: str, deadline: Deadline | None, *, clock: Clock = SYSTEM_CLOCK) -> bool:
    """Completes the action, trying again until the deadline or for a minute. Errors are said and change nothing.

    Returns:
        Whether the group knows that the instance may go.
    """
    deadline = Deadline.after(_LIMIT_S, clock) if deadline is None else deadline.within(_LIMIT_S)
    held = find_held(options, endpoint)
    if held.missing:
        _LOG.warning("the termination's lifecycle action is not completed: unknown is %s", held.missing)
        return False
    name, pause = f"lifecycle hook {held.hook} of group {held.group}", 1.0
    while (error := _complete(held)) is not None:
        if _is_lasting(error) or deadline.seconds_left <= pause:
            _LOG.error("%s is not completed: %s; the group waits for the hook's time-out", name, error)
            return False
        _LOG.warning("%s: %s (trying again)", name, error)
        clock.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    _LOG.info("all is committed: %s lets %s go", name, held.instance)
    return True


def _complete(held: Held) -> BotoCoreError | ClientError | None:
    import boto3  # all of them: a quarter of a second, and memory, that no start needs
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 1})
    try:
        with closing(boto3.client("autoscaling", region_name=held.region, config=once)) as client:
            client.complete_lifecycle_action(
                LifecycleHookName=held.hook,
                AutoScalingGroupName=held.group,
                LifecycleActionResult="CONTINUE",
                InstanceId=held.instance,
            )
    except (BotoCoreError, ClientError) as error:
        return error
    return None


def _is_lasting(error: BotoCoreError | ClientError) -> bool:
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return 400 <= status < 500 and error.response["Error"]["Code"] not in _THROTTLED
