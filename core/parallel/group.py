"""torch.distributed: tensors from the leader to all, and sums from all to the leader.

Nothing else imports it. Groups are made without the process-wide default group, so that one that
broke is dropped and the next is made beside it, and without its object collectives, which unpickle.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import TrainingError, WorkerLostError

# Small tensors travel together: 32 MiB of fp32.
_BUCKET_NUMBERS: Final = 2**23
_START: Final = timedelta(seconds=180)  # importing torch on a busy machine takes its time
_PATIENCE: Final = timedelta(days=365)
_POLL_SECONDS: Final = 0.0002
_LOOPBACK: Final = "127.0.0.1"


class Group:
    """The processes of one machine, connected.

    Guarantees:
        They meet in a file and talk on the loopback interface; nothing listens elsewhere. An
        operation that a process does not come to within ``deadline_seconds``, or that one died
        before, raises at every other; the group is of no use after that.

    Args:
        path: A file of this group alone, in a folder that only the site's account can enter.
        rank: This process's number; 0 leads.
        size: How many processes there are.
        device: Where this process's tensors are. CUDA tensors go by NCCL, all else by gloo.
        deadline_seconds: For every operation.

    Raises:
        WorkerLostError: The others did not come.
    """

    def __init__(
        self, path: Path, rank: int, size: int, *, device: torch.device, deadline_seconds: float
    ) -> None:
        self.rank, self.size = rank, size
        self.timed_out = False
        self._deadline = timedelta(seconds=deadline_seconds)
        self._closed = False
        try:
            store = dist.FileStore(str(path), size)  # type: ignore[attr-defined]
            store.set_timeout(_START)
            self._gloo: Any = _gloo(store, rank, size)
            self._nccl: Any = None
            if device.type == "cuda":
                self._nccl = _nccl(store, rank, size, device)
        except (RuntimeError, ValueError) as error:
            raise self._lost(error) from error

    def broadcast(self, tensors: Sequence[Tensor], *, patient: bool = False) -> None:
        """Sets the tensors, in place, to the leader's: same number, shapes and dtypes everywhere.

        Args:
            tensors: Without autograd; where they are on a device, that of the group.
            patient: Wait for the leader without a deadline.

        Raises:
            WorkerLostError: A process is gone or silent.
        """
        for bucket in _buckets(tensors):
            flat = _flat(bucket)
            options = dist.BroadcastOptions()
            options.rootRank = 0
            options.timeout = _PATIENCE if patient else self._deadline
            self._run("broadcast", flat, options)
            if self.rank != 0:
                _give_back(flat, bucket)

    def sum_to_leader(self, tensors: Sequence[Tensor]) -> None:
        """Adds the others' tensors to the leader's, in place; the others' are used up.

        Guarantees:
            In fp32; the order of additions depends on the number of processes and the sizes of
            the tensors alone.

        Raises:
            WorkerLostError: A process is gone or silent.
            TrainingError: A tensor is not in fp32.
        """
        if any(tensor.dtype != torch.float32 for tensor in tensors):
            raise TrainingError("expected sums in fp32, got others")
        for bucket in _buckets(tensors):
            flat = _flat(bucket)
            options = dist.ReduceOptions()
            options.rootRank = 0
            options.timeout = self._deadline
            self._run("reduce", flat, options)
            if self.rank == 0:
                _give_back(flat, bucket)

    def close(self) -> None:
        """Cuts the connections: the others' next operation raises."""
        if self._closed:
            return
        self._closed = True
        for group in (self._nccl, self._gloo):
            if group is not None:
                group.abort()
        self._nccl = self._gloo = None

    def _run(self, operation: str, flat: Tensor, options: Any) -> None:
        if flat.numel() == 0:
            return  # as everywhere: the sizes are the same
        group = self._nccl if flat.is_cuda else self._gloo
        if group is None:
            raise WorkerLostError("expected a group that is open, got one that was closed")
        began = time.monotonic()
        try:
            work = getattr(group, operation)([flat], options)
            if flat.is_cuda:
                self._wait_for_device(work)
            else:
                work.wait()
        except RuntimeError as error:
            self.timed_out = time.monotonic() - began >= self._deadline.total_seconds()
            raise self._lost(error) from error

    def _wait_for_device(self, work: Any) -> None:
        """NCCL itself would wait for ever, or end the process."""
        give_up = time.monotonic() + self._deadline.total_seconds()
        while not work.is_completed():
            if time.monotonic() > give_up:
                raise RuntimeError("timed out")
            time.sleep(_POLL_SECONDS)
        work.wait()

    def _lost(self, error: Exception) -> WorkerLostError:
        return WorkerLostError(
            f"expected {self.size} processes at work, got one that is gone, or was silent for "
            f"{self._deadline.total_seconds():g} s, seen from process {self.rank}: "
            f"{_in_short(error)}",
            hint="the log of that process says why; service.worker_timeout_seconds is the limit",
        )


def _in_short(error: Exception) -> str:
    """What happened, without the place in torch's sources and its advice."""
    text = re.sub(r"^\[\S+\] ", "", str(error)).partition(". ")[0].splitlines()
    return text[0].encode("ascii", "replace").decode() if text else type(error).__name__


def _gloo(store: Any, rank: int, size: int) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = _START
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
    own = dist.PrefixStore("gloo", store)  # type: ignore[attr-defined]
    return dist.ProcessGroupGloo(own, rank, size, options)


def _nccl(store: Any, rank: int, size: int, device: torch.device) -> Any:
    if not dist.is_nccl_available():
        raise RuntimeError("this build of torch has no NCCL")
    # Read when the group is made. Its watchdog would end the whole process at a lost worker.
    os.environ.update(TORCH_NCCL_ASYNC_ERROR_HANDLING="0", NCCL_SOCKET_IFNAME="lo")
    torch.cuda.set_device(device)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = _START
    own = dist.PrefixStore("nccl", store)  # type: ignore[attr-defined]
    group = dist.ProcessGroupNCCL(own, rank, size, options)
    group.eager_connect_single_device(device)
    return group


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, together at most a bucket; a larger tensor alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        numbers = tensor.numel() + sum(one.numel() for one in bucket)
        if bucket and (numbers > _BUCKET_NUMBERS or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _flat(bucket: Sequence[Tensor]) -> Tensor:
    """One vector: a view of a tensor that is alone, else a copy."""
    if len(bucket) == 1:
        return bucket[0].reshape(-1)
    return torch.cat([tensor.reshape(-1) for tensor in bucket])


def _give_back(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    if flat.data_ptr() == bucket[0].data_ptr():
        return  # a view already
    parts: Sequence[Tensor] = torch.split(flat, [tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
