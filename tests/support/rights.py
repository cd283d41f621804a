"""Users of moto who may do only what a policy says."""

from __future__ import annotations

from typing import Any
from urllib.request import Request, urlopen

from tests.support.groups import GroupServer


def user(server: GroupServer, name: str, **policies: str) -> dict[str, str]:
    """The keys of a new user with those policies, name → document."""
    iam = server.aws("iam")
    iam.create_user(UserName=name)
    for policy, document in policies.items():
        allow(iam, name, policy, document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def allow(iam: Any, name: str, policy: str, document: str) -> None:
    """Gives the user one more policy."""
    iam.put_user_policy(UserName=name, PolicyName=policy, PolicyDocument=document)


def enforce(server: GroupServer, *, after: str) -> None:
    """From so many requests on, moto asks whether they are allowed."""
    url = f"{server.url}/moto-api/reset-auth"
    urlopen(Request(url, after.encode(), {"Content-Type": "text/plain"})).close()
