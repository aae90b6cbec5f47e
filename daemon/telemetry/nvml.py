"""Reads the GPUs of this host through NVML, never waiting for a driver call that hangs."""

from __future__ import annotations

import asyncio
import importlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from daemon.clock import Clock
from daemon.model import NAN, Entity, Event, Fact, Scrape, SourceError
from daemon.telemetry.columns import Columns

T = TypeVar("T")
Values = dict[str, float]


class Worker:
    """One daemon thread that makes one driver call at a time; a call that hangs keeps it, never the process."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[
            tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]
        ]
        self._work = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._pending: asyncio.Future[Any] | None = None

    @property
    def is_busy(self) -> bool:
        return self._pending is not None and not self._pending.done()

    async def call(self, function: Callable[[], T], deadline_s: float) -> T:
        """Run it within the deadline. Raises TimeoutError; the caller must not call again while `is_busy`."""
        if not self._thread.is_alive():
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._pending = future
        self._work.put((loop, future, function))
        return await asyncio.wait_for(asyncio.shield(future), deadline_s)

    def _serve(self) -> None:
        while True:
            loop, future, function = self._work.get()
            try:
                result, problem = function(), None
            except Exception as caught:  # handed to the caller whole
                result, problem = None, caught
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, future, result, problem)


def _settle(future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
        future.exception()  # a late answer nobody waits for any more is no unhandled error


@dataclass(slots=True)
class _Card:
    """What is kept of one GPU. state : "", "hung" or "lost"; events are written when it changes."""

    index: int
    entity: Entity
    worker: Worker
    facts: tuple[Fact, ...] = ()
    state: str = ""


@dataclass(slots=True)
class NvmlGpus:
    """A Source over this host's GPUs. deadline_s : of one GPU's round of driver calls.

    Raises SourceError from the first `read` when there is no driver or no GPU.
    """

    node: str
    clock: Clock
    columns: Columns
    deadline_s: float = 5.0
    _nvml: Any = None
    _host: Worker = field(default_factory=lambda: Worker("nvml-host"))
    _cards: list[_Card] = field(default_factory=list)
    _events: Any = None

    async def read(self) -> Sequence[Scrape]:
        at = self.clock()
        if self._nvml is None:
            await self._start()
        rounds = await asyncio.gather(*(self._read_card(card, at) for card in self._cards))
        events = [event for _, found in rounds for event in found] + await self._xids(at)
        readings = {
            (card.entity, signal): value
            for card, (values, _) in zip(self._cards, rounds, strict=True)
            for signal, value in values.items()
        }
        facts = tuple(fact for card in self._cards for fact in card.facts)
        return [self.columns.scrape(at, readings, facts, tuple(events), self.clock() - at)]

    async def close(self) -> None:
        """Threads are daemons: one that hangs in the driver cannot be stopped and must not stop us."""

    async def _start(self) -> None:
        nvml = importlib.import_module("pynvml")
        if self._host.is_busy:
            raise SourceError(
                f"nvml source on {self.node}: a driver call made earlier still hangs; reboot the host"
            )
        try:
            count = await self._host.call(lambda: _begin(nvml), self.deadline_s)
        except TimeoutError as problem:
            raise SourceError(
                f"nvml source: the driver did not answer within {self.deadline_s:g} s; it hangs: check `dmesg`, reboot"
            ) from problem
        except nvml.NVMLError as problem:
            raise SourceError(
                f"nvml source on {self.node}: {problem}; install the NVIDIA driver on this host or drop the source"
            ) from problem
        if count == 0:
            raise SourceError(
                f"nvml source on {self.node}: the driver sees 0 GPUs, at least 1 is needed; drop the source"
            )
        self._nvml = nvml
        self._cards = [
            _Card(i, Entity("gpu", f"{self.node}/gpu{i}"), Worker(f"nvml-gpu{i}")) for i in range(count)
        ]
        self._events = await self._event_set()

    async def _event_set(self) -> Any:
        """An NVML event set for XIDs, None where the driver has none."""
        nvml, count = self._nvml, len(self._cards)
        try:
            return await self._host.call(lambda: _register(nvml, count), self.deadline_s)
        except (nvml.NVMLError, TimeoutError):
            return None

    async def _read_card(self, card: _Card, at: float) -> tuple[Values, list[Event]]:
        if card.worker.is_busy:
            return self._trouble(card, at, "hung")
        nvml = self._nvml
        try:
            values, known = await card.worker.call(
                lambda: read_card(nvml, card.index, bool(card.facts)), self.deadline_s
            )
        except TimeoutError:
            return self._trouble(card, at, "hung")
        except nvml.NVMLError as problem:
            lost = problem.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)
            return self._trouble(card, at, "lost") if lost else ({}, [])
        card.state = ""
        if known:
            card.facts = tuple(Fact(card.entity, k, v) for k, v in {**known, "node": self.node}.items())
        return {**values, "nvml_hang": 0.0, "gpu_lost": 0.0}, []

    def _trouble(self, card: _Card, at: float, state: str) -> tuple[Values, list[Event]]:
        """Unknown readings stay absent; only the trouble itself is known. The event is written once."""
        kind, signal = ("nvml_hang", "nvml_hang") if state == "hung" else ("gpu_lost", "gpu_lost")
        text = (
            f"a driver call ran past {self.deadline_s:g} s"
            if state == "hung"
            else "the driver says the GPU is lost or needs a reset"
        )
        events = [] if card.state == state else [Event(at, card.entity, kind, NAN, "nvml", text)]
        card.state = state
        return {signal: 1.0}, events

    async def _xids(self, at: float) -> list[Event]:
        if self._events is None or self._host.is_busy:
            return []
        nvml, events = self._nvml, self._events
        try:
            found = await self._host.call(lambda: _drain(nvml, events), self.deadline_s)
        except (nvml.NVMLError, TimeoutError):
            return []
        entities = {card.index: card.entity for card in self._cards}
        return [
            Event(
                at, entities.get(index, Entity("node", self.node)), "xid", float(code), "nvml", f"Xid {code}"
            )
            for index, code in found
        ]


def _begin(nvml: Any) -> int:
    nvml.nvmlInit()
    return int(nvml.nvmlDeviceGetCount())


def _register(nvml: Any, count: int) -> Any:
    events = nvml.nvmlEventSetCreate()
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            continue  # a card without events (older than Kepler) or already lost
    return events


def _drain(nvml: Any, events: Any) -> list[tuple[int, int]]:
    """(GPU index, XID) of what happened since; at most 256 a call. -1 where the card cannot be told any more."""
    found: list[tuple[int, int]] = []
    while len(found) < 256:
        try:
            data = nvml.nvmlEventSetWait_v2(events, 0)
        except nvml.NVMLError as problem:
            if problem.value == nvml.NVML_ERROR_TIMEOUT:
                break
            raise
        try:
            index = int(nvml.nvmlDeviceGetIndex(data.device))
        except nvml.NVMLError:
            index = -1
        found.append((index, int(data.eventData)))
    return found


def read_card(nvml: Any, index: int, is_known: bool) -> tuple[Values, dict[str, str]]:
    """Everything one card tells, canonical units, with what it is unless that is known; unsupported = absent.

    Raises NVMLError when the card is lost or cannot be opened.
    """
    card = nvml.nvmlDeviceGetHandleByIndex(index)
    values: Values = {}
    for read in (_activity, _clocks, _power, _memory, _errors, _pcie, _nvlink):
        values.update(read(nvml, card))
    if is_known:
        return values, {}
    known = {
        "uuid": _ask(nvml, nvml.nvmlDeviceGetUUID, card),
        "sku": _ask(nvml, nvml.nvmlDeviceGetName, card),
        "pci": _pci(nvml, card),
    }
    return values, {k: str(v) for k, v in known.items() if v}


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, None where the card does not support the question. A lost card raises."""
    try:
        return function(*arguments)
    except nvml.NVMLError as problem:
        if problem.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
            raise
        return None


def _numbers(**found: Any) -> Values:
    return {name: float(value) for name, value in found.items() if value is not None}


def _pci(nvml: Any, card: Any) -> str:
    found = _ask(nvml, nvml.nvmlDeviceGetPciInfo, card)
    bus = getattr(found, "busId", b"") or b""
    return bus.decode() if isinstance(bus, bytes) else str(bus)


def _activity(nvml: Any, card: Any) -> Values:
    rates = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, card)
    return {} if rates is None else {"util_ratio": rates.gpu / 100.0}


def _clocks(nvml: Any, card: Any) -> Values:
    return _numbers(
        sm_clock_mhz=_ask(nvml, nvml.nvmlDeviceGetClockInfo, card, nvml.NVML_CLOCK_SM),
        mem_clock_mhz=_ask(nvml, nvml.nvmlDeviceGetClockInfo, card, nvml.NVML_CLOCK_MEM),
        throttle_bits=_ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, card),
    )


def _power(nvml: Any, card: Any) -> Values:
    power_mw = _ask(nvml, nvml.nvmlDeviceGetPowerUsage, card)
    energy_mj = _ask(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, card)
    return _numbers(
        power_w=None if power_mw is None else power_mw / 1e3,
        energy_j_per_s=None if energy_mj is None else energy_mj / 1e3,
        temp_c=_ask(nvml, nvml.nvmlDeviceGetTemperature, card, nvml.NVML_TEMPERATURE_GPU),
    )


def _memory(nvml: Any, card: Any) -> Values:
    found = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, card)
    if found is None:
        return {}
    return _numbers(hbm_total_bytes=found.total, hbm_free_bytes=found.free, hbm_used_bytes=found.used)


def _errors(nvml: Any, card: Any) -> Values:
    values = _numbers(
        ecc_sbe_per_s=_ecc(nvml, card, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        ecc_dbe_per_s=_ecc(nvml, card, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        pages_retired_pending=_ask(nvml, nvml.nvmlDeviceGetRetiredPagesPendingStatus, card),
        pages_retired_sbe=_pages(nvml, card, nvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS),
        pages_retired_dbe=_pages(nvml, card, nvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR),
    )
    rows = _ask(nvml, nvml.nvmlDeviceGetRemappedRows, card)
    if rows is not None:
        correctable, uncorrectable, pending, failed = rows
        values |= _numbers(
            rows_remapped_correctable=correctable,
            rows_remapped_uncorrectable=uncorrectable,
            row_remap_pending=pending,
            row_remap_failed=failed,
        )
    return values


def _ecc(nvml: Any, card: Any, kind: Any) -> Any:
    return _ask(nvml, nvml.nvmlDeviceGetTotalEccErrors, card, kind, nvml.NVML_VOLATILE_ECC)


def _pages(nvml: Any, card: Any, cause: Any) -> float | None:
    found = _ask(nvml, nvml.nvmlDeviceGetRetiredPages, card, cause)
    return None if found is None else float(len(found))


def _pcie(nvml: Any, card: Any) -> Values:
    sent = _ask(nvml, nvml.nvmlDeviceGetPcieThroughput, card, nvml.NVML_PCIE_UTIL_TX_BYTES)
    received = _ask(nvml, nvml.nvmlDeviceGetPcieThroughput, card, nvml.NVML_PCIE_UTIL_RX_BYTES)
    return _numbers(
        pcie_link_gen=_ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, card),
        pcie_link_gen_max=_ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, card),
        pcie_link_width=_ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, card),
        pcie_link_width_max=_ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, card),
        pcie_replay_per_s=_ask(nvml, nvml.nvmlDeviceGetPcieReplayCounter, card),
        pcie_tx_bytes_s=None if sent is None else sent * 1e3,
        pcie_rx_bytes_s=None if received is None else received * 1e3,
    )


def _nvlink(nvml: Any, card: Any) -> Values:
    """Errors summed over the active links; absent when no link is active or the card has none."""
    kinds = {
        "nvlink_replay_per_s": nvml.NVML_NVLINK_ERROR_DL_REPLAY,
        "nvlink_recovery_per_s": nvml.NVML_NVLINK_ERROR_DL_RECOVERY,
        "nvlink_crc_per_s": nvml.NVML_NVLINK_ERROR_DL_CRC_FLIT,
    }
    values: Values = {}
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        state = _ask(nvml, nvml.nvmlDeviceGetNvLinkState, card, link)
        if state is None:
            break
        if not state:
            continue
        for signal, kind in kinds.items():
            count = _ask(nvml, nvml.nvmlDeviceGetNvLinkErrorCounter, card, link, kind)
            if count is not None:
                values[signal] = values.get(signal, 0.0) + float(count)
    return values
