"""`run.vars`: a dictionary of the user's own values that is part of every snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from spotckpt.errors import EncodeError

Check = Callable[[str, object], None]
Say = Callable[[str], None]


class Vars(MutableMapping[str, Any]):
    """Values by name. What a snapshot cannot hold is refused at the assignment, with its path.

    `setdefault` keeps a restored value. Assigning one unread before the first boundary throws away what was restored,
    which is rarely meant: that is said once per name. (A counter reads its value before it assigns one.)

    Args:
        check: called with the path and the value; raises EncodeError.
        say: where the remark goes.
    """

    def __init__(self, check: Check, say: Say) -> None:
        self._check = check
        self._say = say
        self._values: dict[str, Any] = {}
        self._restored: set[str] = set()
        self._assigned: set[str] = set()

    def restore(self, values: Mapping[str, Any]) -> None:
        """Puts the snapshot's values in the place of all but those that were assigned here."""
        assigned = {name: self._values[name] for name in self._assigned}
        self._values = {**values, **assigned}
        self._restored = set(values) - self._assigned

    def settle(self) -> None:
        """From the first boundary on assignments are ordinary."""
        self._restored.clear()

    def state(self) -> dict[str, Any]:
        """The values themselves, for a snapshot."""
        return dict(self._values)

    def __getitem__(self, name: str) -> Any:
        self._restored.discard(name)
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if type(name) is not str:
            raise EncodeError(f"vars[{name!r}]: the name is no string", hint="name it by a string")
        self._check(f"vars.{name}", value)
        if name in self._restored:
            self._restored.discard(name)
            self._say(
                f"warning: vars[{name!r}] was restored and is assigned again before the first boundary, "
                f"so the restored value is lost; use run.vars.setdefault({name!r}, ...)"
            )
        self._values[name] = value
        self._assigned.add(name)

    def __delitem__(self, name: str) -> None:
        del self._values[name]
        self._restored.discard(name)
        self._assigned.discard(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Vars({self._values!r})"
