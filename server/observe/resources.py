"""The machine and the process of a rank, looked at every few seconds."""

from __future__ import annotations

import asyncio
import os
import plistlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil
import structlog

from server.rpc.records import Resources

log = structlog.get_logger()

RAPL = Path("/sys/class/powercap/intel-rapl:0")  # the first processor package
POWERMETRICS = "/usr/bin/powermetrics"
POWERMETRICS_SECONDS = 5.0  # for an answer; it measures for 0.2


class ResourceMonitor:
    """`latest` is what was seen last.  Nothing is read between two looks."""

    def __init__(self, folder: Path) -> None:
        """`folder`: on the disk that is watched."""
        self._folder = folder
        self._process = psutil.Process()
        self._power = power_meter()
        self.latest: Resources | None = None
        # psutil counts from the call before.
        psutil.cpu_percent()
        self._process.cpu_percent()

    async def run(self, interval_s: float) -> NoReturn:
        """Look again and again.  In a thread: sensors and a sleeping disk may take their time."""
        while True:
            try:
                self.latest = await asyncio.to_thread(self.look)
            except (OSError, psutil.Error) as error:
                log.warning("the resources of this node can't be told", reason=str(error))
            await asyncio.sleep(interval_s)

    def look(self) -> Resources:
        """How things are now; shares of CPU since the look before."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        network = psutil.net_io_counters()
        with self._process.oneshot():
            busy, resident = self._process.cpu_percent(), self._process.memory_info().rss
        return Resources(
            cores=psutil.cpu_count() or 1,
            cpu_percent=psutil.cpu_percent(),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            process_cpu_percent=busy,
            process_memory=resident,
            disk_used=disk.used,
            disk_total=disk.used + disk.free,  # what is reserved for root is neither
            network_sent=network.bytes_sent if network else 0,
            network_received=network.bytes_recv if network else 0,
            temperature_c=hottest(),
            power_w=self._power(),
        )


def hottest() -> float | None:
    """Degrees Celsius of the hottest sensor, where psutil knows any."""
    sensors = getattr(psutil, "sensors_temperatures", None)  # not on macOS
    if sensors is None:
        return None
    found = [entry.current for entries in sensors().values() for entry in entries]
    return max((value for value in found if value is not None and value > 0), default=None)


PowerMeter = Callable[[], float | None]


def power_meter() -> PowerMeter:
    """Tells the watts of the processor, or None where the platform does not."""
    if sys.platform == "darwin":
        return mac_power
    if os.access(RAPL / "energy_uj", os.R_OK):
        return RaplMeter()
    return lambda: None


class RaplMeter:
    """Intel's and AMD's energy counter, which on most systems only root may read."""

    def __init__(self, folder: Path = RAPL, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._before: tuple[float, int] | None = None

    def __call__(self) -> float | None:
        """Mean since the call before; None at the first one, and when the counter has begun anew."""
        try:
            energy = int((self._folder / "energy_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        now, before = self._clock(), self._before
        self._before = now, energy
        if before is None or energy < before[1] or now <= before[0]:
            return None
        return (energy - before[1]) / 1e6 / (now - before[0])


def mac_power() -> float | None:  # needs macOS: not covered by tests on Linux
    """Watts of CPU, GPU and Neural Engine; powermetrics tells them to root only."""
    if os.geteuid() != 0:
        return None
    command = [POWERMETRICS, "-n", "1", "-i", "200", "--samplers", "cpu_power", "-f", "plist"]
    try:
        answer = subprocess.run(
            command, capture_output=True, check=True, timeout=POWERMETRICS_SECONDS
        )
        return float(plistlib.loads(answer.stdout)["processor"]["combined_power"]) / 1e3
    except (OSError, subprocess.SubprocessError, plistlib.InvalidFileException, KeyError):
        return None
