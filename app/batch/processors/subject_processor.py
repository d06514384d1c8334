"""The three stages that every subject goes through: read, network, write."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from app.batch.outcomes import Outcome
from app.batch.stages import CaseLog, FailedCase, FinishedCase, WrittenCase
from app.batch.tracing import Trace
from app.core.config import RunConfig
from app.core.errors import DeviceError, TetradError, WeightsError
from app.data.cases import Case
from app.inference.backends import is_memory_error

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class _Logged(Protocol):
    """Hold a subject between two stages."""

    @property
    def log(self) -> CaseLog:
        """Give what is known of it so far."""


Loaded = TypeVar("Loaded", bound=_Logged)
Computed = TypeVar("Computed", bound=_Logged)


class SubjectProcessor(ABC, Generic[Loaded, Computed]):
    """Take subjects through three stages, each in its own thread, with one model.

    A stage that fails gives a `FailedCase`, which the later stages pass on: one subject never harms another.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.trace = Trace(keep=config.profile_file is not None)

    @property
    @abstractmethod
    def runtime(self) -> str:
        """Say what the model runs on, and why."""

    @property
    @abstractmethod
    def on_gpu(self) -> bool:
        """Tell whether its network runs on a GPU."""

    @property
    @abstractmethod
    def model_record(self) -> Mapping[str, Any]:
        """Name the model, for records (`app.registry.identity.identity_record`)."""

    def read(self, case: Case) -> Loaded | FinishedCase:
        """Decode what the subject needs."""
        case_log = CaseLog(case.subject)
        return self._isolated("read", case_log, lambda: self._read(case, case_log))

    def compute(self, loaded: Loaded | FinishedCase) -> Computed | FinishedCase:
        """Run the network."""
        if isinstance(loaded, WrittenCase | FailedCase):
            return loaded
        return self._isolated("network", loaded.log, lambda: self._compute(loaded))

    def write(self, computed: Computed | FinishedCase) -> Outcome:
        """Finish and write the images; the outcome is final then."""
        if isinstance(computed, WrittenCase | FailedCase):
            return computed.outcome()
        return self._isolated("write", computed.log, lambda: self._write_all(computed)).outcome()

    @abstractmethod
    def _read(self, case: Case, case_log: CaseLog) -> Loaded | WrittenCase:
        """Read, or find that nothing is to be done; errors are the subject's."""

    @abstractmethod
    def _compute(self, loaded: Loaded) -> Computed:
        """Run the network; errors are the subject's."""

    @abstractmethod
    def _write_all(self, computed: Computed) -> WrittenCase:
        """Write the images; errors are the subject's."""

    def _isolated(self, stage: str, case_log: CaseLog, work: Callable[[], _Result]) -> _Result | FailedCase:
        """Keep with the subject whatever happens to it; only a signal gets through."""
        try:
            with self.trace.span(stage, case_log.subject, case_log.stages):
                return work()
        except TetradError as error:
            return FailedCase(case_log, str(error))
        except Exception as error:
            log.debug("%s", case_log.subject, exc_info=True)
            reason = f"unexpected {type(error).__name__}: {error}; please report it with the file concerned."
            return FailedCase(case_log, reason)


def opened(open_model: Callable[[], _Result], config: RunConfig) -> _Result:
    """Open a model; whatever goes wrong becomes one sentence.

    Raises:
        WeightsError, UsageError, DeviceError: the model cannot be loaded.
    """
    try:
        return open_model()
    except RuntimeError as error:
        # A GPU that is full, or in another's exclusive use.
        reason = f"the model could not be loaded on device {config.runtime.device} ({str(error).splitlines()[0]})"
        raise DeviceError(f"{reason}; free it, or use --device cpu.") from None
    except (TetradError, MemoryError, ImportError, OSError):
        raise
    except Exception as error:
        log.debug("", exc_info=True)
        if is_memory_error(error):
            raise MemoryError(str(error)) from None
        reason = (str(error).splitlines() or [""])[0][:160]
        raise WeightsError(
            f"the model in {config.model.weights_dir} cannot be used ({type(error).__name__}: {reason}); "
            "fetch the weights again."
        ) from None
