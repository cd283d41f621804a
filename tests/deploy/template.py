"""The CloudFormation template as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
TEMPLATE = DEPLOY / "aws/template.yaml"


class _Loader(yaml.SafeLoader):
    """Reads `!Sub text` as {"Fn::Sub": text}, and so on."""


def _function(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix == "Ref" else f"Fn::{suffix}"
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.ScalarNode)
    return {name: loader.construct_scalar(node)}


_Loader.add_multi_constructor("!", _function)


def properties() -> dict[str, dict[str, Any]]:
    """Resource → its properties."""
    loaded = yaml.load(TEMPLATE.read_text(), _Loader)
    return {name: resource["Properties"] for name, resource in loaded["Resources"].items()}


def without_functions(value: Any) -> Any:
    """The value with every Fn::Sub as text in which the bucket is BUCKET, as the policy files have it."""
    if isinstance(value, dict):
        if list(value) == ["Fn::Sub"]:
            return value["Fn::Sub"].replace("${AWS::Partition}", "aws").replace("${Bucket}", "BUCKET")
        return {name: without_functions(part) for name, part in value.items()}
    return [without_functions(part) for part in value] if isinstance(value, list) else value
