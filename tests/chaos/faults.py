"""The faults. Each does its harm, undoes it where that is not the application's own task, and says what it hit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

from tests.chaos.proxy import ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT
from tests.chaos.stream import Stream, poison
from tests.chaos.system import PARTITIONS, REPLICAS, SESSION_TIMEOUT_S, System
from tests.support.replicas import wait_until

Fault = Callable[[System, Stream, random.Random], str]  #: returns the detail for the timeline

STEPS = {ADD_OFFSETS_TO_TXN: "AddOffsetsToTxn", END_TXN: "EndTxn", TXN_OFFSET_COMMIT: "TxnOffsetCommit"}
VICTIM_S = 60.0  #: for a process to be there, or a request to come


def replica_killed(system: System, _: Stream, rng: random.Random) -> str:
    """kill -9 of a replica."""
    pid = rng.choice(_replicas(system))
    os.kill(pid, signal.SIGKILL)
    return f"pid {pid}"


def replica_killed_in_commit(system: System, _: Stream, rng: random.Random) -> str:
    """kill -9 of a replica at a step of its commit; the request reaches the broker after the death of its sender."""
    api_key = rng.choice(list(STEPS))
    pid = _stop_at(system, api_key, signal.SIGKILL)
    system.proxy.disarm()
    return f"pid {pid} at {STEPS[api_key]}"


def replica_frozen(system: System, _: Stream, rng: random.Random) -> str:
    """SIGSTOP of a replica beyond its session timeout, then SIGCONT: a zombie, maybe with an open transaction."""
    pid, seconds = rng.choice(_replicas(system)), rng.uniform(SESSION_TIMEOUT_S + 1, SESSION_TIMEOUT_S + 6)
    os.kill(pid, signal.SIGSTOP)
    _thaw(pid, seconds)
    return f"pid {pid} for {seconds:.1f} s"


def replica_frozen_in_commit(system: System, _: Stream, rng: random.Random) -> str:
    """The same at a step of its commit; the request is delivered when the group has gone on without the sender."""
    api_key, seconds = rng.choice(list(STEPS)), rng.uniform(SESSION_TIMEOUT_S + 1, SESSION_TIMEOUT_S + 6)
    pid = _stop_at(system, api_key, signal.SIGSTOP)
    _thaw(pid, seconds)
    system.proxy.disarm()
    return f"pid {pid} at {STEPS[api_key]} for {seconds:.1f} s"


def monitor_killed(system: System, _: Stream, rng: random.Random) -> str:
    """kill -9 of the monitor."""
    return _kill(system, f"ServeReplica:{system.settings.application}:Monitor")


def controller_killed(system: System, _: Stream, rng: random.Random) -> str:
    """kill -9 of Ray Serve's controller."""
    return _kill(system, "ServeController")


def broker_restarted(system: System, _: Stream, rng: random.Random) -> str:
    """A clean stop of a broker, and its start."""
    node = rng.choice(system.cluster.nodes)
    system.cluster.stop(node)
    system.cluster.start(node)
    return f"broker {node}"


def leader_killed(system: System, _: Stream, rng: random.Random) -> str:
    """kill -9 of the broker that leads a partition of the input or an output; it starts again some seconds later."""
    topics = system.settings.topics
    topic, partition = rng.choice([topics.input, *topics.outputs, "__consumer_offsets"]), rng.randrange(4)
    node = system.leader(topic, partition)
    system.cluster.kill(node)
    time.sleep(rng.uniform(0, 4))
    system.cluster.start(node)
    return f"broker {node}, leader of {topic}/{partition}"


def scaled(system: System, _: Stream, rng: random.Random) -> str:
    """Fewer replicas, and after some seconds all of them again."""
    fewer = rng.randrange(1, REPLICAS)
    system.deploy(fewer)
    time.sleep(rng.uniform(0, 3))
    system.deploy()
    return f"{REPLICAS} to {fewer} to {REPLICAS}"


def commit_cut(system: System, _: Stream, rng: random.Random) -> str:
    """The connection is cut when EndTxn arrives: nothing is committed."""
    return _cut(system, END_TXN, "request", rng.randint(1, 3))


def commit_answer_cut(system: System, _: Stream, rng: random.Random) -> str:
    """The connection is cut when EndTxn is done: the client does not know."""
    return _cut(system, END_TXN, "answer", rng.randint(1, 3))


def offsets_cut(system: System, _: Stream, rng: random.Random) -> str:
    """The same with the requests that carry the offsets."""
    return _cut(system, rng.choice([ADD_OFFSETS_TO_TXN, TXN_OFFSET_COMMIT]), rng.choice(["request", "answer"]), 2)


def connections_dropped(system: System, _: Stream, rng: random.Random) -> str:
    """All of the application's connections to a broker are cut."""
    node = rng.choice(system.cluster.nodes)
    return f"{system.proxy.drop(node)} to broker {node}"


def network_slow(system: System, _: Stream, rng: random.Random) -> str:
    """Every request and every answer takes longer."""
    delay_s, seconds = rng.uniform(0.05, 0.15), rng.uniform(3, 6)
    with system.proxy.delayed(delay_s):
        time.sleep(seconds)
    return f"by {delay_s * 1000:.0f} ms for {seconds:.1f} s"


def broker_silent(system: System, _: Stream, rng: random.Random) -> str:
    """A broker takes connections and requests, and answers nothing; then all arrives."""
    node, seconds = rng.choice(system.cluster.nodes), rng.uniform(3, SESSION_TIMEOUT_S + 4)
    with system.proxy.black_hole(node):
        time.sleep(seconds)
    return f"broker {node} for {seconds:.1f} s"


def poisoned(system: System, stream: Stream, rng: random.Random) -> str:
    """Records of all kinds that no tweet can be read from."""
    burst = poison(rng)
    stream.inject(burst)
    return f"{len(burst)} records"


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        replica_killed,
        replica_killed_in_commit,
        replica_frozen,
        replica_frozen_in_commit,
        monitor_killed,
        controller_killed,
        broker_restarted,
        leader_killed,
        scaled,
        commit_cut,
        commit_answer_cut,
        offsets_cut,
        connections_dropped,
        network_slow,
        broker_silent,
        poisoned,
    )
}
assert PARTITIONS >= REPLICAS


def _replicas(system: System) -> list[int]:
    wait_until(lambda: bool(system.replicas), "a replica", VICTIM_S)
    return system.replicas


def _kill(system: System, title: str) -> str:
    wait_until(lambda: bool(system.processes(title)), title, VICTIM_S)
    (pid, *_) = system.processes(title)
    os.kill(pid, signal.SIGKILL)
    return f"pid {pid}"


def _stop_at(system: System, api_key: int, how: signal.Signals) -> int | None:
    """Signal the replica that sends the next request of an API; the request waits until the traps are disarmed."""
    system.proxy.trap(api_key, "hold")
    wait_until(lambda: bool(system.proxy.sprung()), f"a request {STEPS[api_key]}", VICTIM_S)
    pid = system.owner(system.proxy.sprung()[0][2])
    if pid is not None:
        os.kill(pid, how)
    return pid


def _thaw(pid: int | None, seconds: float) -> None:
    time.sleep(seconds)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):  # Serve has replaced it meanwhile
            os.kill(pid, signal.SIGCONT)


def _cut(system: System, api_key: int, at: str, times: int) -> str:
    system.proxy.trap(api_key, at, times)
    wait_until(lambda: len(system.proxy.sprung()) == times, f"{times} requests {STEPS[api_key]}", VICTIM_S)
    system.proxy.disarm()
    return f"{times} times, {STEPS[api_key]} {at}"
