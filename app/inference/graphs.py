"""CUDA graphs: what a function of tensors launches on a GPU, recorded once per shape and replayed with one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: More recordings are not made, and what is not recorded runs as it is. Each holds its inputs and outputs (20 MB for 64
#: slices); what lies between them is held once for all.
MOST = 64

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
        self._seen: set[Hashable] = set()
        self._known: dict[Hashable, Recording] = {}
        self._refused = False

    def __call__(self, name: Hashable, call: Call, inputs: Inputs) -> Tensors:
        """What `call(*inputs)` returns, in memory of its own.

        Args:
            name: tells functions apart; the shapes and types of the inputs are told apart anyhow.

        Raises:
            RuntimeError: as `call`.
        """
        key = (name, *(None if x is None else (x.shape, x.dtype) for x in inputs))
        recording = self._known.get(key) or self._recorded(key, call, inputs)
        if recording is None:
            return call(*inputs)
        for place, given in zip(recording.inputs, inputs, strict=True):
            if place is not None and given is not None:
                place.copy_(given)
        recording.replay()
        # The next replay, of whatever shape, writes over what this one wrote.
        return tuple(out.clone() for out in recording.outputs)

    def _recorded(self, key: Hashable, call: Call, inputs: Inputs) -> Recording | None:
        """A new recording; None where none is due, or none can be made."""
        if self._refused or len(self._known) == MOST:
            return None
        if key not in self._seen:
            # A shape that comes once, like the last batch of an odd brain, is not worth a recording.
            self._seen.add(key)
            return None
        try:
            self._known[key] = self._record(call, inputs)
        except RuntimeError as error:
            # What broke a recording is often said first, and then only that it is broken.
            reason = str(error.__context__ or error).splitlines()[0]
            log.warning("No CUDA graph could be recorded (%s); going on without.", reason)
            self._refused = True
            # Their memory is wanted.
            self._known.clear()
            return None
        return self._known[key]


class CudaRecorder:
    """Records on one GPU; all recordings share one pool of memory, since no two of them are ever under way.

    Args:
        device: which GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, call: Call, inputs: Inputs) -> Recording:
        """A recording of `call(*inputs)`.

        Raises:
            RuntimeError: the call does what a graph cannot hold, or memory runs out.
        """
        # The inner `with` brings back the stream of before, which a recording that breaks does not.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            if self._stream is None:
                # Torch's own would belong to the GPU that recorded first in this process.
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._pool = torch.cuda.graph_pool_handle()
            held = tuple(None if x is None else x.clone() for x in inputs)
            # What libraries settle at their first call on a stream must be settled before the recording.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                call(*held)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads, which encode and write, may go on allocating.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = call(*held)
            return Recording(held, outputs, graph.replay)
