"""One process at a time works on a run, on one machine or on many that share the store."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import SoftFileLease, Timeout

NAMELESS_S = 10  # far longer than it takes to write a name into a marker
LEASE_S = 120  # a holder on another machine that has not renewed its claim for so long is taken to be dead


class LostLease(RuntimeError):
    """This process was halted so long that another one has taken its run over: what it would write is not written."""


@contextmanager
def alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Within: no other process is in folder, which must exist; waits for the one that is.

    The claim of a process that died is taken over: at once on its own machine, else once it has not been renewed for
    LEASE_S seconds by the waiter's own monotonic clock, so clocks need not agree, nor stand still. A claim that names
    nobody, as a loss of power leaves it, is removed. The file system must create a file exclusively, rename atomically
    and show a file's new times to others within LEASE_S; no flock is used.
    """
    marker = folder / ".lock"
    lease = SoftFileLease(marker, lease_duration=LEASE_S, poll_interval=0.2)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        remove_nameless(marker)
        say(f"waiting for {holder(folder) or 'another process'}, which works on {folder.name}")
        lease.acquire()
    on_disk(marker)
    _HELD[folder] = lease
    try:
        yield
    finally:
        del _HELD[folder]
        lease.release()


def remove_nameless(marker: Path) -> None:
    """Remove a marker that names no holder and stays as it is for NAMELESS_S: filelock would wait for it for ever.

    It is moved aside first, so that of several who wait for it only one removes it, and none a new one.
    """
    aside, first, started = marker.with_name(f".lock.{os.getpid()}"), stamp(marker), time.monotonic()
    while first and stamp(marker) == first and not holder(marker.parent):
        if time.monotonic() - started > NAMELESS_S:
            with suppress(OSError):
                marker.rename(aside)
                if stamp(aside) != first:
                    os.link(aside, marker)  # another process's, made just now: it is put back
                aside.unlink()
            return
        time.sleep(0.2)


def stamp(marker: Path) -> tuple[int, int, int] | None:
    """What tells one state of a file from another; None where there is none."""
    with suppress(FileNotFoundError):
        found = marker.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def on_disk(path: Path) -> None:
    """Have a file's content survive a loss of power."""
    with suppress(OSError), open(path, "rb") as file:
        os.fsync(file.fileno())


def holder(folder: Path) -> str:
    """Which process has claimed folder, '' where none has; it may be dead."""
    owner = SoftFileLease(folder / ".lock", lease_duration=LEASE_S).owner
    return f"process {owner.pid} on {owner.hostname.split('?')[0]}" if owner else ""


def others(folder: Path) -> str:
    """Which process has claimed folder, unless it is dead, this one, or one that this one started; else ''."""
    owner = SoftFileLease(folder / ".lock", lease_duration=LEASE_S).owner
    if owner and owner.hostname.split("?")[0] == platform.node():
        try:
            family = [owner.pid, *(process.pid for process in psutil.Process(owner.pid).parents())]
        except psutil.NoSuchProcess:
            return ""
        return "" if os.getpid() in family else holder(folder)
    return holder(folder)


def still_ours(folder: Path) -> None:
    """Raise LostLease where this process had claimed folder, and another one has it now."""
    lease = _HELD.get(folder)
    if lease and (lease.owner is None or lease.owner.token != lease.token):
        raise LostLease(
            f"{folder} was taken over while this process stood still for {LEASE_S} s or more, or its .lock was "
            "removed: the other process goes on with the run, this one stops."
        )


_HELD: dict[Path, SoftFileLease] = {}
