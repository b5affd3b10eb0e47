"""How many replicas the lag needs: an autoscaling policy for Ray Serve.

Serve's own policy counts requests, but a replica that pulls from Kafka gets no requests. Here each replica reports the
lag and the arrival rate of its partitions, and how many records it processes per second (`ReplicaStats`, through
`record_autoscaling_stats`). `observe` adds the reports up, `desired_replicas` decides, and Serve calls `LagPolicy` ten
times a second. Nothing here asks Kafka, so a broker that does not answer cannot block Serve's controller.

The decision has no memory, on purpose. Serve (2.60, `ray.serve.autoscaling_policy._apply_autoscaling_config`) adds
delays to every policy and keeps their state: it scales up only after the policy has wanted more replicas than there are
for `upscale_delay_s` without a break, and down only after it has wanted fewer for `downscale_delay_s`. Delays here
would add to these.

Serve pickles this module by value, so it imports only the standard library.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")  # the controller's logger, which writes to its log file

IDLE_LOAD = 0.05  #: a load below this share of one replica's service rate counts as nothing to do


@dataclass(frozen=True)
class ReplicaStats:
    """What one replica reports. Serve takes only numbers, so an unknown value is 0, as noted below."""

    partitions: float = 0  #: of the input topic; 0: not known
    measured_partitions: float = 0  #: number of this replica's partitions that the next two numbers cover
    lag_records: float = 0  #: not committed yet
    arrival_records_per_s: float = 0
    service_records_per_s: float = 0  #: what it processes while it is behind; 0: not known


@dataclass(frozen=True)
class Observation:
    """What the decision is based on. None: not known."""

    target: int  #: number of replicas that Serve should keep running
    settled: bool  #: whether they all run and each of them has partitions
    min_replicas: int
    max_replicas: int
    partitions: int | None
    lag_records: float | None
    arrival_records_per_s: float | None
    service_records_per_s: float | None  #: of one replica


@dataclass(frozen=True)
class AutoscalingSettings:
    """`policy_kwargs` of the Serve config file. Raises ValueError if one is wrong."""

    drain_target_s: float = 120.0  #: how soon the lag should be gone
    target_utilization: float = 0.8  #: share of the replicas' capacity that the arriving records may use
    downscale_margin: float = 0.2  #: scale down only if one replica less is enough for a load larger by this share

    @classmethod
    def of(cls, policy_kwargs: Mapping[str, Any]) -> Self:
        """Raises ValueError also for an unknown name."""
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
    """Add up what the `running` replicas report. Reports may be missing, if replicas have not reported yet.

    A partition without an owner (during a rebalance, or because its replica died) is in no report. So lag and arrival
    rate are known only if the reports together cover every partition.
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

    The replicas have to process what arrives, with some capacity left, and the lag within `drain_target_s`:

        needed rate = arrival rate / target_utilization + lag / drain_target_s
        replicas    = ceil(needed rate / service rate of one replica)

    This is the target of Flink's autoscaler (`AutoScalerUtils.getTargetProcessingCapacity`). Its third term, for the
    records that come while a job restarts, is left out: here the existing replicas go on. The number is between
    `min_replicas` and `max_replicas`. It is never more than one per partition, as in KEDA's Kafka scaler, because a
    further consumer of the group would have nothing to read. It is never 0, because replicas measure the lag.

    The number stays if the lag (broker unreachable, partition without owner) or the service rate is not known.

    * Up: at once to that number, but only after the replicas asked for before run and have their partitions (`settled`;
      the scale-up grace period of Flink's autoscaler). A replica takes seconds to load its model and to get partitions.
      The lag that grows in the meantime is no reason for more replicas, and each new replica causes a rebalance.
    * Down: by one, and only if one replica less is enough for the load plus `downscale_margin`. Between the two limits
      the number stays, so that it does not follow the noise of the measurements. The next step down waits for the
      effect of the one before.
    * Down to the minimum if there is next to nothing to do (`IDLE_LOAD`).
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

    Serve makes one per deployment, with `policy_kwargs`, and calls it in the control loop of its controller. An
    exception would end each round of that loop early, for all applications of the cluster. So wrong arguments are
    logged and turn the scaling off. `twinlens serve` and `twinlens doctor` refuse them earlier.
    """

    def __init__(self, **policy_kwargs: Any) -> None:
        self._settings: AutoscalingSettings | None = None
        self._before: Observation | None = None
        try:
            self._settings = AutoscalingSettings.of(policy_kwargs)
        except ValueError as error:
            log.error("twinlens does not scale: wrong policy_kwargs: %s", error)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state. Uses only the newest sample of each replica."""
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
    """The last report of each running replica. Serve drops samples older than `look_back_period_s`."""
    names = [field.name for field in fields(ReplicaStats)]
    series = context.raw_metrics or {}
    reports = []
    for replica in context.running_replicas:
        found = {name: series.get(name, {}).get(replica) for name in names}
        if all(found.values()):
            reports.append(ReplicaStats(**{name: points[-1].value for name, points in found.items() if points}))
    return reports
