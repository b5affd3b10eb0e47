"""How many replicas the lag asks for: an autoscaling policy for Ray Serve.

Serve's own policy counts requests, and a replica that pulls from Kafka has none. Here each replica reports the lag and
the arrival rate of its partitions and how many records it gets through per second (`ReplicaStats`, through
`record_autoscaling_stats`); `observe` adds them up, `desired_replicas` decides, and `LagPolicy` is what Serve calls,
ten times a second. Nothing here asks Kafka, so a broker that is away cannot hold up Serve's controller.

The number is without memory on purpose. Serve (2.60, `ray.serve.autoscaling_policy._apply_autoscaling_config`) puts the
delays around every policy and keeps their state: it scales only when the policy has wanted more than there is for
`upscale_delay_s` without a break, or less for `downscale_delay_s`. Delays of our own would come on top of these.

Serve pickles this module by value, so it imports nothing but the standard library.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")  # the controller's own: it writes to its log file

IDLE_LOAD = 0.05  #: below this share of what one replica gets through there is nothing to do


@dataclass(frozen=True)
class ReplicaStats:
    """What one replica reports. Serve takes numbers only, so what is not known is 0 and marked as below."""

    partitions: float = 0  #: of the input topic; 0: not known
    measured_partitions: float = 0  #: of this replica's partitions, those that the next two numbers speak of
    lag_records: float = 0  #: not committed yet
    arrival_records_per_s: float = 0
    service_records_per_s: float = 0  #: what the replica gets through while it is behind; 0: not known


@dataclass(frozen=True)
class Observation:
    """What there is to decide by. None: not known."""

    target: int  #: replicas that Serve is to keep running
    settled: bool  #: they all run, and each of them has partitions
    min_replicas: int
    max_replicas: int
    partitions: int | None
    lag_records: float | None
    arrival_records_per_s: float | None
    service_records_per_s: float | None  #: of one replica


@dataclass(frozen=True)
class AutoscalingSettings:
    """`policy_kwargs` of the Serve config file. ValueError when one is wrong."""

    drain_target_s: float = 120.0  #: how soon the lag is to be gone
    target_utilization: float = 0.8  #: share of the replicas' capacity that the arriving records may take
    downscale_margin: float = 0.2  #: a replica less must be enough for this much more than there is

    @classmethod
    def of(cls, policy_kwargs: Mapping[str, Any]) -> Self:
        """ValueError also for a name that there is not."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(policy_kwargs) - set(names)):
            raise ValueError(f"there is no {', '.join(unknown)}, but {', '.join(names)}")
        return cls(**policy_kwargs)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{field.name} must be a number, not {value!r}")
        if self.drain_target_s <= 0:
            raise ValueError("drain_target_s must be more than 0")
        if not 0 < self.target_utilization <= 1:
            raise ValueError("target_utilization must be more than 0 and at most 1")
        if self.downscale_margin < 0:
            raise ValueError("downscale_margin must be at least 0")


def observe(
    reports: Sequence[ReplicaStats], *, running: int, target: int, min_replicas: int, max_replicas: int
) -> Observation:
    """Add up what the `running` replicas report; fewer reports than replicas where some have not reported yet.

    A partition without an owner (a rebalance is under way, its replica is dead) is in nobody's report. Lag and arrival
    rate are therefore known only when the replicas together speak of every partition.
    """
    partitions = int(max((report.partitions for report in reports), default=0)) or None
    complete = sum(report.measured_partitions for report in reports) == partitions
    rates = [report.service_records_per_s for report in reports if report.service_records_per_s > 0]
    return Observation(
        target=target,
        settled=running == target == sum(report.measured_partitions > 0 for report in reports),
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        partitions=partitions,
        lag_records=sum(report.lag_records for report in reports) if complete else None,
        arrival_records_per_s=sum(report.arrival_records_per_s for report in reports) if complete else None,
        service_records_per_s=sum(rates) / len(rates) if rates else None,
    )


def desired_replicas(seen: Observation, settings: AutoscalingSettings) -> int:
    """The number of replicas to aim at, before Serve's delays.

    The replicas have to get through what arrives, with room to spare, and through the lag within `drain_target_s`:

        needed rate = arrival rate / target_utilization + lag / drain_target_s
        replicas    = ceil(needed rate / service rate of one replica)

    This is the target of Flink's autoscaler (`AutoScalerUtils.getTargetProcessingCapacity`; its third term, for the
    records that come while a job restarts, is left out: here the replicas that there are go on). Between
    `min_replicas` and `max_replicas`; never more than one per partition, as KEDA's Kafka scaler has it, since another
    consumer of the group would have nothing to read; never 0, since replicas measure the lag.

    What is not known keeps the number: no lag (broker away, partition without owner), no service rate.

    * Up at once to that number, but only once the replicas asked for before run and have their partitions (`settled`;
      the scale-up grace period of Flink's autoscaler). A replica takes seconds to load its model and to be given
      partitions; what piles up meanwhile is no reason for more of them, and each of them is a rebalance.
    * Down by one, and only when one replica less is enough for `downscale_margin` more than there is. Between the two
      lies a band in which the number stays, so that it cannot follow the noise of what is measured. The next step down
      waits for what the one before has shown.
    * Down to the minimum when there is next to nothing to do (`IDLE_LOAD`).
    """
    low = max(1, seen.min_replicas)
    high = max(low, min(seen.max_replicas, seen.partitions or seen.max_replicas))
    keep = min(max(seen.target, low), high)
    if seen.lag_records is None or seen.arrival_records_per_s is None:
        return keep
    needed = seen.arrival_records_per_s / settings.target_utilization + seen.lag_records / settings.drain_target_s
    if seen.service_records_per_s is None:
        return keep if needed > 0 else low
    load = needed / seen.service_records_per_s  # in replicas
    if load > keep:
        return min(math.ceil(load), high) if seen.settled else keep
    if load <= IDLE_LOAD:
        return low
    enough = load * (1 + settings.downscale_margin) <= keep - 1
    return max(keep - 1, low) if enough else keep


class LagPolicy:
    """The policy that a Serve config file names: `policy_function: twinlens.autoscaling:LagPolicy`.

    Serve makes one per deployment, with `policy_kwargs`, and calls it within the control loop of its controller. An
    exception would end each round of that loop before its end, for all applications of the cluster: wrong arguments
    are therefore logged and turn the scaling off. `twinlens serve` and `twinlens doctor` refuse them before.
    """

    def __init__(self, **policy_kwargs: Any) -> None:
        self._settings: AutoscalingSettings | None = None
        self._before: Observation | None = None
        try:
            self._settings = AutoscalingSettings.of(policy_kwargs)
        except ValueError as error:
            log.error("twinlens does not scale: wrong policy_kwargs: %s", error)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state. Only what the newest sample of each replica says counts."""
        if self._settings is None:
            return context.target_num_replicas, {}
        seen = observe(
            _newest(context),
            running=context.current_num_replicas,
            target=context.target_num_replicas,
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
        )
        before, self._before = self._before, seen
        if before is not None and before.target != seen.target:
            log.info("twinlens: from %d to %d replicas, since %s", before.target, seen.target, before)
        return desired_replicas(seen, self._settings), {}


def _newest(context: AutoscalingContext) -> list[ReplicaStats]:
    """The last report of each running replica. Serve forgets samples older than `look_back_period_s`."""
    names = [field.name for field in fields(ReplicaStats)]
    series = context.raw_metrics or {}
    reports = []
    for replica in context.running_replicas:
        found = {name: series.get(name, {}).get(replica) for name in names}
        if all(found.values()):
            reports.append(ReplicaStats(**{name: points[-1].value for name, points in found.items() if points}))
    return reports
