"""An AWS session whose environment may be another process's.

The agent opens stores for trainers: their credentials, profile, region and endpoint arrive over its socket, and must
neither mix with the agent's own environment nor change it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from aiobotocore.session import AioSession
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConfigChainFactory, ConfiguredEndpointProvider
from botocore.handlers import add_expect_header
from botocore.loaders import create_loader

ENVIRONMENT_NAMES: tuple[str, ...] = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_CA_BUNDLE",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_METADATA_SERVICE_TIMEOUT",
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
)


def aws_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those names of `ENVIRONMENT_NAMES` that are set, with their values: secrets, never to be logged or stored."""
    return {name: environ[name] for name in ENVIRONMENT_NAMES if name in environ}


@functools.cache
def _loader(search_path: str | None) -> Any:
    return create_loader(search_path)


class Session(AioSession):  # type: ignore[misc]
    """A botocore session that takes settings and credentials from `environment` instead of `os.environ`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        super().__init__()
        # A server that never sends "100 Continue" holds such a request without limit: the read time-out of aiohttp
        # starts when the body has been sent. Without the header the body simply follows.
        self.unregister("before-call.s3", add_expect_header)

    @property
    def region(self) -> str | None:
        """The region by botocore's rules, and AWS_REGION as in the other SDKs."""
        region: str | None = self.get_config_variable("region")
        return region or self._environment.get("AWS_REGION")

    def _register_data_loader(self) -> None:
        # The description of S3 is a megabyte of JSON: read once for all sessions.
        self._components.lazy_register_component("data_loader", lambda: _loader(self.get_config_variable("data_path")))

    def _register_config_store(self) -> None:
        super()._register_config_store()
        store = self.get_component("config_store")
        chains = ConfigChainFactory(session=self, environ=self._environment)
        for name, (setting, variable, default, convert) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
            chain = chains.create_config_chain(
                instance_name=name,
                env_var_names=variable,
                config_property_names=setting,
                default=default,
                conversion_func=convert,
            )
            store.set_config_provider(name, chain)

    def _add_configured_endpoint_provider(self, client_name: str, config_store: Any) -> None:
        endpoint = ConfiguredEndpointProvider(
            full_config=self.full_config,
            scoped_config=self.get_scoped_config(),
            client_name=client_name,
            environ=self._environment,
        )
        config_store.set_config_provider(logical_name="endpoint_url", provider=endpoint)

    def _create_credential_resolver(self) -> Any:
        resolver = super()._create_credential_resolver()
        for provider in resolver.providers:
            for attribute in ("environ", "_environ"):
                if hasattr(provider, attribute):
                    setattr(provider, attribute, self._environment)
            if hasattr(provider, "_CONFIG_TO_ENV_VAR"):
                provider._get_env_config = self._web_identity
        if self._environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            resolver.remove("iam-role")
        return resolver

    def _web_identity(self, setting: str) -> str | None:
        names = {
            "web_identity_token_file": "AWS_WEB_IDENTITY_TOKEN_FILE",
            "role_arn": "AWS_ROLE_ARN",
            "role_session_name": "AWS_ROLE_SESSION_NAME",
        }
        return self._environment.get(names.get(setting, ""))
