"""What people use today, each as its documentation says; every function takes a training and an address on S3.

s3torchconnector is not here: its client is published as a source distribution only and needs a Rust tool chain.
"""

from __future__ import annotations

import io
from concurrent.futures import Future
from typing import Any

import boto3
import fsspec
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tests.bench.training import Training


def state_of(training: Training) -> dict[str, Any]:
    """What a `torch.save` of a training holds."""
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}


def load_state(training: Training, state: dict[str, Any]) -> None:
    """Its inverse."""
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])


def forget_connections() -> None:
    """The environment names another server now."""
    boto3.DEFAULT_SESSION = None
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def torch_save_boto3(training: Training, uri: str) -> None:
    """`torch.save` into memory, then boto3's transfer manager with its defaults."""
    buffer = io.BytesIO()
    torch.save(state_of(training), buffer)
    buffer.seek(0)
    boto3.client("s3").upload_fileobj(buffer, *_place(uri))


def torch_load_boto3(training: Training, uri: str) -> None:
    """boto3's transfer manager into memory, then `torch.load`."""
    buffer = io.BytesIO()
    boto3.client("s3").download_fileobj(*_place(uri), buffer)
    buffer.seek(0)
    load_state(training, torch.load(buffer, weights_only=True))


def torch_save_s3fs(training: Training, uri: str) -> None:
    """`torch.save` into an open s3fs file."""
    with fsspec.open(uri, "wb") as file:
        torch.save(state_of(training), file)


def torch_load_s3fs(training: Training, uri: str) -> None:
    """`torch.load` from an open s3fs file."""
    with fsspec.open(uri, "rb") as file:
        load_state(training, torch.load(file, weights_only=True))


def dcp_save(training: Training, uri: str) -> None:
    """`torch.distributed.checkpoint` with its fsspec writer, in one process."""
    dcp.save(_dcp_state(training), storage_writer=FsspecWriter(uri), no_dist=True)


def dcp_load(training: Training, uri: str) -> None:
    """Its inverse."""
    state = _dcp_state(training)
    dcp.load(state, storage_reader=FsspecReader(uri), no_dist=True)
    set_state_dict(
        training.model, training.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


class AsyncSave:
    """`dcp.async_save` with a stager that keeps its memory, pinned for a GPU: the second one is its best."""

    def __init__(self) -> None:
        self._stager: Any = None
        self._future: Future[Any] | None = None
        self._staged: Future[Any] | None = None

    def start(self, training: Training, uri: str) -> None:
        """Returns when it lets the next forward and backward begin."""
        if self._stager is None:
            gpu = training.batch.is_cuda
            options = StagingOptions(
                use_pinned_memory=gpu, use_shared_memory=gpu, use_async_staging=gpu, use_non_blocking_copy=gpu
            )
            self._stager = DefaultStager(options)
        response = dcp.async_save(
            _dcp_state(training), storage_writer=FsspecWriter(uri), async_stager=self._stager, no_dist=True
        )
        self._future = getattr(response, "upload_completion", response)
        self._staged = getattr(response, "staging_completion", None)

    def before_optimizer(self) -> None:
        """Until everything is copied."""
        if self._staged is not None:
            self._staged.result()

    def wait(self) -> None:
        """Until it is uploaded."""
        if self._future is not None:
            self._future.result()


def _dcp_state(training: Training) -> dict[str, Any]:
    model, optimizer = get_state_dict(training.model, training.optimizer)
    return {"model": model, "optimizer": optimizer}


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
