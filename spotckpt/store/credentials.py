"""What requests are signed with: found by botocore's chain, and used through the troubles of whoever gives them.

Roles' credentials change every few hours. botocore asks for new ones a quarter of an hour before the old ones end, but
takes a service that fails meanwhile for having no credentials, though the old ones are still good.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

from spotckpt.deadline import SYSTEM_CLOCK, Deadline
from spotckpt.store.bounded import in_time
from spotckpt.store.os_errors import one_line
from spotckpt.store.session import Session

BETWEEN_LOOKS_S = 5.0
"""While old credentials are good, whoever should give new ones is asked no more often."""
_TROUBLE = (BotoCoreError, ClientError, OSError, RuntimeError, ValueError, LookupError)


class Credentials:
    """What an environment gives, or that it gives nothing. Threads may share them.

    botocore's signers take this object for one of their own; what they sign with is `now`, which only `keep` changes.

    Attributes:
        session: makes clients that sign with these.
        now: access key, secret key and token; None if none were found.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.session = Session(environment)
        self._found = self.session.get_credentials()
        self._looked_at = -math.inf
        self._looking = threading.Lock()
        self.now = self._frozen() if self._found is not None else None
        if self._found is not None:
            self.session.use(self)

    @property
    def source(self) -> str:
        """botocore's name of where they are from, as in `iam-role`."""
        return str(getattr(self._found, "method", "none"))

    @property
    def are_lent(self) -> bool:
        """Whether they are from a service that gives others when these end."""
        return hasattr(self._found, "refresh_needed")

    def keep(self, deadline: Deadline) -> None:
        """Asks for new ones when it is time to, and waits for them only if the old ones have ended.

        Raises:
            CredentialRetrievalError: there are none, and the old ones have ended.
            LateError: nobody answers, and the old ones have ended.
        """
        if not self.are_lent or not self._found.refresh_needed():
            return
        if self._have_ended:
            in_time("to renew credentials", self._renew, deadline)
        elif SYSTEM_CLOCK.now() >= self._looked_at + BETWEEN_LOOKS_S:
            self._looked_at = SYSTEM_CLOCK.now()
            with contextlib.suppress(RuntimeError):  # there are no threads left: another time
                threading.Thread(target=self._try_to_renew, name="spotckpt-keys", daemon=True).start()

    def get_frozen_credentials(self) -> Any:
        """What botocore signs with."""
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    def _renew(self) -> None:
        with self._looking:
            self.now = self._frozen()

    def _try_to_renew(self) -> None:
        with contextlib.suppress(CredentialRetrievalError):
            self._renew()

    def _frozen(self) -> Any:
        try:
            return self._found.get_frozen_credentials()
        except _TROUBLE as error:  # a RuntimeError for credentials that had ended when they were given, a KeyError, ...
            raise CredentialRetrievalError(provider=self.source, error_msg=one_line(error)) from error

    @property
    def _have_ended(self) -> bool:
        return bool(self._found.refresh_needed(0))
