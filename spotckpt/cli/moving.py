"""`spotckpt pull` and `spotckpt push`: snapshots as files, files as snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spotckpt.address import Address
from spotckpt.cli import output
from spotckpt.cli.runs import address_of_run, find_snapshot, open_run
from spotckpt.config import size_text
from spotckpt.snapshot.fetch import read_manifest
from spotckpt.store.base import Progress
from spotckpt.store.open import open_store

if TYPE_CHECKING:
    from spotckpt.moving.pull import Begin

_FORMATS = click.Choice(["pt", "safetensors", "dcp"])
_format_option = click.option(
    "--format", "asked", type=_FORMATS, help="By default what FILE's name says: .pt, .safetensors, .dcp, ..."
)


@click.command(
    epilog="""\b
Examples:
  spotckpt pull s3://bucket/run@best=valid/top1:max model.safetensors --only model
  spotckpt pull s3://bucket/run checkpoint.pt
"""
)
@click.argument("address")
@click.argument("file", type=click.Path(path_type=Path))
@_format_option
@click.option("--only", multiple=True, metavar="NAME", help="Only this object, as in --only model; may be repeated.")
@output.timeout_option
def pull(address: str, file: Path, asked: str | None, only: tuple[str, ...], timeout_s: float) -> None:
    """Write a snapshot to a .pt, safetensors or DCP file.

    ADDRESS is URI[@SELECTOR]. FILE becomes a dictionary that torch.load(weights_only=True) reads (.pt, .pth, .ckpt,
    .bin, .tar), a safetensors file, or a directory of torch.distributed.checkpoint (.dcp): whole and checked, or it is
    not there. Interrupted, the same command goes on where it stopped. One module or optimizer by --only is its
    state_dict() alone.
    """
    from spotckpt.moving.formats import format_of

    format_, parsed = format_of(file, asked), Address.parse(address)
    with open_run(parsed.uri, timeout_s=timeout_s) as run, _bars() as begin:
        from spotckpt.moving.pull import pull as pulled

        manifest = read_manifest(run.store, find_snapshot(run, parsed), run_id=run.run_id)
        pulled(run.store, manifest, file, format_, only=only, begin=begin)
    output.emit_line(f"{file}: step {manifest.step} of {parsed.uri} ({manifest.snapshot})")


@click.command(
    epilog="""\b
Examples:
  spotckpt push checkpoint.pt s3://bucket/again
  spotckpt push model.safetensors s3://bucket/weights --step 1200
"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("uri")
@_format_option
@click.option("--trust-pickle", is_flag=True, help="Execute what a .pt file wants executed. It can do anything.")
@click.option(
    "--step", type=click.IntRange(0, 10**18 - 1), help="Where run.steps goes on; by default as the file says."
)
@click.option(
    "--epoch", type=click.IntRange(0, 10**18 - 1), help="Where run.epochs goes on; by default as the file says."
)
@output.timeout_option
def push(file: Path, uri: str, asked: str | None, *, trust_pickle: bool, timeout_s: float, **place: int | None) -> None:
    """Make a checkpoint file the first snapshot of a new run.

    FILE is what pull writes, a checkpoint of pytorchcheckpoint, a dictionary of torch.save, a safetensors file or a
    directory of torch.distributed.checkpoint. No pickle is executed. A training with that address goes on from it.
    Interrupted, the same command goes on where it stopped.
    """
    from spotckpt.moving.formats import format_of

    format_, address = format_of(file, asked), address_of_run(uri)
    with closing(open_store(address, call_timeout_s=timeout_s)) as store, _bars() as begin:
        from spotckpt.moving.files import read
        from spotckpt.moving.push import placed_at
        from spotckpt.moving.push import push as pushed

        contents = placed_at(read(file, format_, trust_pickle=trust_pickle), **place)
        manifest = pushed(store, contents, name=file.name, begin=begin, say=_say)
    objects = ", ".join(contents.objects) or "no objects"
    output.emit_line(f"{address}@{manifest.snapshot}: {objects}; {len(contents.vars)} vars; step {manifest.step}")


def _say(text: str) -> None:
    click.echo(f"spotckpt: {text}", err=True)


@contextmanager
def _bars() -> Iterator[Begin]:
    """One bar after the other; before it, what an earlier try had done already."""
    with ExitStack() as shown:

        def begin(what: str, total: int, there: int) -> Progress:
            shown.close()
            if there:
                _say(f"going on where it stopped: {size_text(there)} of {size_text(total)} are there")
            return shown.enter_context(output.progress(what, total))

        yield begin
