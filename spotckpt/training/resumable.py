"""The decorator, and the same as a context manager."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from spotckpt.errors import SpotckptError, StopTraining
from spotckpt.training.arguments import bound_arguments, call
from spotckpt.training.endings import running
from spotckpt.training.request import Options, address_text, check_options, make_request
from spotckpt.training.run import Run
from spotckpt.training.say import say, say_error

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")


class Resumable(Generic[P, R]):
    """A train function that goes on where its last attempt ended.

    Calling it runs the function with a `Run` before the other arguments. Errors of spotckpt and the ends that are none
    (an interruption) leave the process with a line on standard error and an exit status of their own, see
    `spotckpt.errors`; the function's own exceptions pass through untouched.
    """

    def __init__(self, function: Callable[Concatenate[Run, P], R], uri: str | None, options: Options) -> None:
        self._function = function
        self._uri = uri
        self._at: str | None = None
        self._options = options
        functools.update_wrapper(self, function)

    def at(self, uri: str | os.PathLike[str] | None, *, takeover: bool = False) -> Resumable[P, R]:
        """The same function at another address, with or without a selector; None leaves it as it is.

        Args:
            uri: the address.
            takeover: as the option of that name; False leaves it as it is.
        """
        options = self._options
        if takeover:
            options = {**options, "takeover": True}
        other = Resumable(self._function, self._uri, options)
        other._at = self._at if uri is None else address_text(uri, given_to="at")
        return other

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function from where the run stands."""
        uri = self._at or os.environ.get("SPOTCKPT_URI") or self._uri
        try:
            arguments = bound_arguments(self._function, args, kwargs)
            with running(make_request(uri, arguments, self._options)) as run:
                return cast("R", call(self._function, run, args, kwargs))
        except SpotckptError as error:
            say_error(error)
            raise SystemExit(error.exit_status) from error
        except StopTraining as stop:
            say(stop.message)
            raise SystemExit(stop.exit_status) from stop

    def __repr__(self) -> str:
        return f"<resumable {getattr(self, '__qualname__', self._function)} at {self._at or self._uri}>"


@overload
def resumable(uri: Callable[Concatenate[Run, P], R], /) -> Resumable[P, R]: ...


@overload
def resumable(
    uri: str | os.PathLike[str] | None = None, **options: Unpack[Options]
) -> Callable[[Callable[Concatenate[Run, P], R]], Resumable[P, R]]: ...


def resumable(uri: Any = None, **options: Unpack[Options]) -> Any:
    """Makes a train function resumable; its first parameter is the run.

        @spotckpt.resumable("s3://bucket/resnet", every="10min", keep_best="valid/top1:max")
        def train(run, lr=1e-3): ...

    The address is that of `train.at(uri)`, else the environment's SPOTCKPT_URI, else the one given here, which may be a
    template that the arguments fill (`s3://bucket/{trial}`). With SPOTCKPT_DISABLED=1 the loops run plainly.

    Args:
        uri: where the run lives, as in `s3://bucket/path` or `file:///path`; a selector may follow
            (`@step=1200`, `@best=valid/top1:max`, `@start`).
        options: see `spotckpt.training.request.Options`.

    Raises:
        UsageError: `uri` is neither an address nor a function, or there is no such option.
    """
    check_options("resumable", options)
    if callable(uri):
        return Resumable(uri, None, options)
    address = address_text(uri, given_to="resumable")

    def decorate(function: Callable[Concatenate[Run, P], R]) -> Resumable[P, R]:
        return Resumable(function, address, options)

    return decorate


@contextmanager
def open_run(
    uri: str | os.PathLike[str] | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Iterator[Run]:
    """The same without the decorator: `with spotckpt.open_run("s3://bucket/resnet") as run: ...`

    Errors and `Interrupted` are raised, not turned into exit statuses.

    Args:
        uri: as in `resumable`; None means SPOTCKPT_URI.
        arguments: recorded with every snapshot, and they fill a template in `uri`.
        options: see `spotckpt.training.request.Options`.
    """
    check_options("open_run", options)
    address = address_text(uri, given_to="open_run") or os.environ.get("SPOTCKPT_URI")
    with running(make_request(address, arguments or {}, options)) as run:
        yield run


def add_arguments(
    parser: argparse.ArgumentParser, option: str = "--resume", *, takeover: str | None = "--takeover"
) -> None:
    """Adds an option that takes an address, and one to take over; without them nothing changes.

    parser = argparse.ArgumentParser()
    spotckpt.add_arguments(parser)
    args = parser.parse_args()
    train.at(args.resume, takeover=args.takeover)(lr=args.lr)

    Args:
        parser: the program's.
        option: the name of the first.
        takeover: the name of the second; None leaves it out.
    """
    parser.add_argument(
        option,
        metavar="URI",
        default=None,
        help="where the run lives, and from where it goes on: s3://bucket/path, s3://bucket/path@step=1200",
    )
    if takeover is not None:
        parser.add_argument(
            takeover,
            action="store_true",
            help="do not wait for an attempt that still holds the run: it stops, and what it has not committed is lost",
        )
