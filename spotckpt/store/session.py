"""An AWS session whose environment may be another process's.

The agent opens stores for trainers: their credentials, profile, region and endpoint arrive over its socket, and must
neither mix with the agent's own environment nor change it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConfigChainFactory, ConfiguredEndpointProvider
from botocore.handlers import add_expect_header
from botocore.loaders import create_loader
from botocore.session import Session as BotocoreSession


@functools.cache
def _loader(search_path: str | None) -> Any:
    return create_loader(search_path)


class Session(BotocoreSession):  # type: ignore[misc]
    """A botocore session that takes settings and credentials from `environment` instead of `os.environ`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        super().__init__()
        # A server that never sends "100 Continue" would hold a request until its deadline: the body simply follows.
        self.unregister("before-call.s3", add_expect_header)

    @property
    def region(self) -> str | None:
        """The region by botocore's rules, and AWS_REGION as in the other SDKs."""
        region: str | None = self.get_config_variable("region")
        return region or self._environment.get("AWS_REGION")

    def use(self, credentials: Any) -> None:
        """Signs with these from now on."""
        self._credentials = credentials

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
        role = resolver.get_provider("iam-role")
        # it has looked at the process's own environment, which may be an agent's that was told not to ask
        role._role_fetcher._disabled = self._environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        return resolver

    def _web_identity(self, setting: str) -> str | None:
        names = {
            "web_identity_token_file": "AWS_WEB_IDENTITY_TOKEN_FILE",
            "role_arn": "AWS_ROLE_ARN",
            "role_session_name": "AWS_ROLE_SESSION_NAME",
        }
        return self._environment.get(names.get(setting, ""))
