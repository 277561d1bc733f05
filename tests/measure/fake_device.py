"""A device whose time is a number: launched work takes time only when the device gets to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from kvbench.measure.clock import Event, HostClock, QueueClock
from kvbench.measure.paired import Arm, measure_paired
from kvbench.measure.samples import PairedSamples
from kvbench.measure.settings import Settings
from kvbench.measure.statistics import Statistic

MS = 1_000_000  # ns
DEFAULTS = Path(__file__).parents[2] / "conf" / "measure" / "default.yaml"


class FakeDevice:
    """Streams that work in order, beside a host that launches."""

    def __init__(self, launch_ns: int = 1) -> None:
        self.now_ns = 0
        self.launch_ns = launch_ns
        self.ready_ns: defaultdict[str, int] = defaultdict(int)

    def launch(self, work_ns: int, stream: str = "main") -> None:
        """Queue work, which begins once the stream has done what came before."""
        self.now_ns += self.launch_ns
        self.ready_ns[stream] = self.finish_ns(stream) + work_ns

    def join(self, stream: str) -> None:
        """Let the main stream wait for another one."""
        self.ready_ns["main"] = max(self.finish_ns("main"), self.finish_ns(stream))

    def finish_ns(self, stream: str) -> int:
        """Return when a stream will have nothing left to do."""
        return max(self.now_ns, self.ready_ns[stream])

    def synchronize(self) -> None:
        """Let the host wait for every stream."""
        self.now_ns = max([self.now_ns, *self.ready_ns.values()])


class FakeEvent:
    """A point in the main stream."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.at_ns = 0

    def record(self) -> None:
        """Put the point behind the work launched so far."""
        self.at_ns = self.device.finish_ns("main")

    def synchronize(self) -> None:
        """Let the host wait for the point."""
        self.device.now_ns = max(self.device.now_ns, self.at_ns)

    def elapsed_time(self, end_event: Event) -> float:
        """Return the time to a later point [ms]."""
        assert isinstance(end_event, FakeEvent)
        return (end_event.at_ns - self.at_ns) / MS


class FakeQueueClock(QueueClock):
    """The clock of a device with a queue."""

    device_type = "cuda"

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def new_event(self) -> Event:
        """Return a point in the main stream."""
        return FakeEvent(self.device)

    def settle(self) -> None:
        """Wait for every stream."""
        self.device.synchronize()

    def now_ns(self) -> int:
        """Return the pretended time."""
        return self.device.now_ns


class FakeHostClock(HostClock):
    """The clock of a processor, on pretended time."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def now_ns(self) -> int:
        """Return the pretended time."""
        return self.device.now_ns

    def joules(self) -> float | None:
        """Return None: nobody counts."""
        return None


class FakeHost:
    """A machine on pretended time; a disturbance is a step during which the process loses its core."""

    def __init__(self, device: FakeDevice, *, num_cpus: int = 2, busy: float = 0.0) -> None:
        self.device, self.num_cpus, self.busy = device, num_cpus, busy
        self.num_switches = 0
        self.slept_s = 0.0

    def now_s(self) -> float:
        """Return the pretended time."""
        return self.device.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        """Let time go by."""
        self.slept_s += seconds
        self.device.now_ns += round(seconds * 1e9)

    def switches(self) -> int:
        """Return how often the process lost its core."""
        return self.num_switches

    def busy_cores(self) -> float:
        """Return what other processes use."""
        return self.busy


class FakeArm:
    """Work on the main stream: a prefill when restored, then steps as told.

    Args:
        device: does the work.
        work_ns: of the step with this index in its block.
        on_host: whether the host itself works, as on a CPU.
    """

    def __init__(self, device: FakeDevice, work_ns: Callable[[int], int], *, on_host: bool = False) -> None:
        self.device, self.work_ns, self.on_host = device, work_ns, on_host
        self.index = 0
        self.num_restored = 0

    def restore(self) -> None:
        """Do a long prefill and begin again."""
        self.index = 0
        self.num_restored += 1
        self._work(50 * MS)

    def step(self) -> None:
        """Do one step."""
        self._work(self.work_ns(self.index))
        self.index += 1

    def _work(self, work_ns: int) -> None:
        if self.on_host:
            self.device.now_ns += work_ns
        else:
            self.device.launch(work_ns)


def default_settings(**changes: int | float) -> Settings:
    """Return the shipped settings with changes."""
    fields = {str(name): value for name, value in OmegaConf.load(DEFAULTS).items() if name != "_target_"}
    return replace(Settings(**fields), **changes)  # type: ignore[arg-type]


def run(
    arms: Mapping[str, Arm],
    clock: FakeQueueClock | FakeHostClock,
    settings: Settings,
    *,
    baseline: str | None = "baseline",
    steps: int = 4,
    statistic: Statistic = "median",
    host: FakeHost | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> PairedSamples:
    """Run a comparison on pretended time."""
    return measure_paired(
        arms,
        baseline=baseline,
        steps=steps,
        statistic=statistic,
        settings=settings,
        clock=clock,
        host=FakeHost(clock.device) if host is None else host,
        progress=progress,
    )
