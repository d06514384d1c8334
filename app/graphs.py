"""CUDA graphs: what a function of tensors launches on a GPU, recorded once per shape and replayed with one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: More shapes than this run as if nothing were recorded: each recording holds the memory of its inputs and outputs.
MOST = 32

Tensors: TypeAlias = tuple[Tensor, ...]
Inputs: TypeAlias = Sequence[Tensor | None]
Call: TypeAlias = Callable[..., Tensors]


@dataclass(frozen=True)
class Recording:
    """A call that can be repeated.

    Attributes:
        inputs: where `replay` reads.
        outputs: where it writes.
    """

    inputs: tuple[Tensor | None, ...]
    outputs: Tensors
    replay: Callable[[], None]


class Graphs:
    """Calls functions of tensors: the first time of a shape as they are, the second time they are recorded.

    Where a function cannot be recorded, it is called as it is from then on.

    Args:
        record: makes a recording of a call with certain inputs.
    """

    def __init__(self, record: Callable[[Call, Inputs], Recording]) -> None:
        self._record = record
        self._known: dict[Hashable, Recording | None] = {}
        self._refused = False

    def __call__(self, name: Hashable, call: Call, inputs: Inputs) -> Tensors:
        """What `call(*inputs)` returns, in memory of its own.

        Args:
            name: tells functions apart; the shapes and types of the inputs are told apart anyhow.

        Raises:
            RuntimeError: as `call`.
        """
        key = (name, *(None if x is None else (x.shape, x.dtype) for x in inputs))
        if self._refused or (key not in self._known and len(self._known) == MOST):
            return call(*inputs)
        if key not in self._known:
            # A shape that comes once, like the last batch of an odd brain, is not worth a recording.
            self._known[key] = None
            return call(*inputs)
        recording = self._known[key]
        if recording is None:
            try:
                recording = self._known[key] = self._record(call, inputs)
            except RuntimeError as error:
                log.warning("No CUDA graph could be recorded (%s); going on without.", str(error).splitlines()[0])
                self._refused = True
                return call(*inputs)
        for place, given in zip(recording.inputs, inputs, strict=True):
            if place is not None and given is not None:
                place.copy_(given)
        recording.replay()
        # The next replay, of whatever shape, writes over what this one wrote.
        return tuple(out.clone() for out in recording.outputs)


class CudaRecorder:
    """Records on one GPU; all recordings share one pool of memory, since no two of them are ever under way.

    Args:
        device: which GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, call: Call, inputs: Inputs) -> Recording:
        """A recording of `call(*inputs)`.

        Raises:
            RuntimeError: the call does what a graph cannot hold, or memory runs out.
        """
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            held = tuple(None if x is None else x.clone() for x in inputs)
            # What libraries settle at their first call on a stream must be settled before the recording.
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                call(*held)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads, which encode and write, may go on allocating.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = call(*held)
            return Recording(held, outputs, graph.replay)
