"""The number of replicas: what it may never be, and what comes of it under Serve's own delays."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext
from ray.serve.schema import ServeDeploySchema

from twinlens.autoscaling import AutoscalingSettings, LagPolicy, Observation, ReplicaStats, desired_replicas, observe
from twinlens.errors import AskUser
from twinlens.serving.config import LAG_POLICY, check_autoscaling
from twinlens.settings import Settings

ROOT = Path(__file__).parents[2]
DEFAULTS = AutoscalingSettings()


def seen(**changes: Any) -> Observation:
    """Two replicas of at most eight, half of what they can do, no lag."""
    given = {
        "target": 2,
        "settled": True,
        "min_replicas": 1,
        "max_replicas": 8,
        "partitions": 8,
        "lag_records": 0.0,
        "arrival_records_per_s": 120.0,
        "service_records_per_s": 100.0,
    }
    return Observation(**{**given, **changes})


rates = st.floats(0, 1e6)
unknown = st.none()
observations = st.builds(
    lambda low, extra, **rest: Observation(min_replicas=low, max_replicas=max(1, low + extra), **rest),
    low=st.integers(0, 5),
    extra=st.integers(0, 20),
    target=st.integers(0, 30),
    settled=st.booleans(),
    partitions=st.integers(1, 30) | unknown,
    lag_records=rates | unknown,
    arrival_records_per_s=rates | unknown,
    service_records_per_s=st.floats(1e-3, 1e6) | unknown,
)
policies = st.builds(
    AutoscalingSettings,
    drain_target_s=st.floats(1, 1e4),
    target_utilization=st.floats(0.1, 1),
    downscale_margin=st.floats(0, 2),
)


class TestDesired:
    @pytest.mark.parametrize(
        ("changes", "replicas"),
        [
            ({"arrival_records_per_s": 120.0}, 2),  # 1.5 replicas: neither more nor, with the margin, less
            ({"arrival_records_per_s": 170.0}, 3),  # 2.1
            ({"arrival_records_per_s": 60.0}, 1),  # 0.75, and 0.9 with the margin
            ({"arrival_records_per_s": 70.0}, 2),  # 0.875, but 1.05 with the margin
            ({"arrival_records_per_s": 0.0, "lag_records": 60_000.0}, 5),  # 60,000 / 120 s / 100 per s
            ({"arrival_records_per_s": 80.0, "lag_records": 60_000.0}, 6),
            ({"arrival_records_per_s": 0.0, "lag_records": 1e9}, 8),
            ({"arrival_records_per_s": 3.0, "target": 7}, 1),  # next to nothing
            ({"arrival_records_per_s": 60.0, "target": 7}, 6),  # one step
        ],
    )
    def test_examples(self, changes: dict[str, Any], replicas: int) -> None:
        assert desired_replicas(seen(**changes), DEFAULTS) == replicas

    @pytest.mark.parametrize("missing", ["lag_records", "arrival_records_per_s"])
    def test_what_is_not_known_keeps_the_number(self, missing: str) -> None:
        much = seen(target=3, lag_records=1e6, arrival_records_per_s=1e6)
        assert desired_replicas(dataclasses.replace(much, **{missing: None}), DEFAULTS) == 3
        nothing = seen(target=3, arrival_records_per_s=0.0)
        assert desired_replicas(nothing, DEFAULTS) == 1
        assert desired_replicas(dataclasses.replace(nothing, **{missing: None}), DEFAULTS) == 3

    def test_without_a_service_rate_only_idleness_is_known(self) -> None:
        assert desired_replicas(seen(service_records_per_s=None, lag_records=1e6), DEFAULTS) == 2
        assert desired_replicas(seen(service_records_per_s=None, arrival_records_per_s=0.0), DEFAULTS) == 1

    def test_no_more_replicas_before_those_that_were_asked_for_work(self) -> None:
        behind = seen(lag_records=1e6)
        assert desired_replicas(behind, DEFAULTS) == 8
        assert desired_replicas(dataclasses.replace(behind, settled=False), DEFAULTS) == 2

    def test_one_that_cannot_be_started_does_not_keep_the_others(self) -> None:
        assert desired_replicas(seen(target=3, settled=False, arrival_records_per_s=0.0), DEFAULTS) == 1

    @given(observations, policies)
    def test_it_never_leaves_its_bounds(self, what: Observation, policy: AutoscalingSettings) -> None:
        desired = desired_replicas(what, policy)
        least = max(1, what.min_replicas)
        assert least <= desired <= max(least, what.max_replicas)
        assert desired <= max(least, what.partitions or what.max_replicas)

    @given(observations, policies, rates, st.sampled_from(["lag_records", "arrival_records_per_s"]))
    def test_more_work_never_means_fewer_replicas(
        self, what: Observation, policy: AutoscalingSettings, more: float, which: str
    ) -> None:
        if getattr(what, which) is None:
            return
        harder = dataclasses.replace(what, **{which: getattr(what, which) + more})
        assert desired_replicas(harder, policy) >= desired_replicas(what, policy)

    @given(observations, policies)
    def test_the_same_input_leads_to_one_number_without_turning(
        self, what: Observation, policy: AutoscalingSettings
    ) -> None:
        """Even without delays: first up or first down, and never back."""
        numbers = [what.target]
        for _ in range(40):
            numbers.append(desired_replicas(dataclasses.replace(what, target=numbers[-1]), policy))
        assert numbers[-1] == numbers[-2]
        steps = [after - before for before, after in pairwise(numbers[1:])]  # the first one may be into the bounds
        assert min(steps) >= 0 or max(steps) <= 0


class TestObserve:
    FULL = ReplicaStats(
        partitions=4, measured_partitions=2, lag_records=10, arrival_records_per_s=5, service_records_per_s=50
    )

    def test_it_adds_lag_and_arrival_and_averages_the_service_rates(self) -> None:
        other = dataclasses.replace(self.FULL, lag_records=20, service_records_per_s=100)
        found = observe([self.FULL, other], running=2, target=2, min_replicas=1, max_replicas=4)
        assert (found.partitions, found.settled) == (4, True)
        assert (found.lag_records, found.arrival_records_per_s, found.service_records_per_s) == (30, 10, 75)

    @pytest.mark.parametrize(
        "reports",
        [
            [],
            [FULL],  # its partitions went to one that has not reported yet
            [FULL, dataclasses.replace(FULL, measured_partitions=1)],  # a partition has no owner
            [FULL, dataclasses.replace(FULL, measured_partitions=3)],  # two say that they own it: one of them did
            [FULL, ReplicaStats(service_records_per_s=50)],  # one cannot reach the broker
        ],
    )
    def test_lag_is_known_only_when_every_partition_is_spoken_of_once(self, reports: list[ReplicaStats]) -> None:
        found = observe(reports, running=2, target=2, min_replicas=1, max_replicas=4)
        assert (found.lag_records, found.arrival_records_per_s) == (None, None)
        assert found.service_records_per_s == (50 if reports else None)

    @pytest.mark.parametrize(
        ("running", "target", "second"),
        [(1, 2, None), (2, 1, FULL), (2, 2, None), (2, 2, dataclasses.replace(FULL, measured_partitions=0))],
    )
    def test_it_is_not_settled_while_one_starts_or_stops_or_waits_for_partitions(
        self, running: int, target: int, second: ReplicaStats | None
    ) -> None:
        first = dataclasses.replace(self.FULL, measured_partitions=4)
        reports = [first] if second is None else [first, second]
        assert not observe(reports, running=running, target=target, min_replicas=1, max_replicas=4).settled

    def test_one_that_has_never_been_behind_does_not_count_into_the_service_rate(self) -> None:
        fresh = dataclasses.replace(self.FULL, service_records_per_s=0)
        found = observe([self.FULL, fresh], running=2, target=2, min_replicas=1, max_replicas=4)
        assert found.service_records_per_s == 50


class Cluster:
    """A toy: replicas that take time to start, rebalances that pause the group, reports that are old.

    The policy is built from its import path and called with a real context, under Serve's own delays.
    """

    START_S, REBALANCE_S, REPORT_S, SERVICE, PARTITIONS = 8, 4, 10, 100.0, 8

    def __init__(self, *, noise: float = 0.0, seed: int = 0, **kwargs: float) -> None:
        self.config = AutoscalingConfig(
            min_replicas=1,
            max_replicas=8,
            upscale_delay_s=30,
            downscale_delay_s=120,
            policy={"policy_function": LAG_POLICY, "policy_kwargs": kwargs},
        )
        self.policy = _apply_autoscaling_config(_resolve_policy_callable(self.config.policy))
        self.state: dict[str, Any] = {}
        self.random, self.noise = random.Random(seed), noise
        self.now_s, self.lag, self.target = 0, 0.0, 1
        self.started: list[int] = [-100]  # when each replica was asked for
        self.rebalanced = -100
        self.reported: dict[ReplicaID, ReplicaStats] = {}
        self.changes: list[tuple[int, int]] = []
        self.lags: list[float] = []

    def run(self, arrival: Callable[[int], float], until_s: int) -> Cluster:
        with patch("ray.serve.autoscaling_policy.time", SimpleNamespace(time=lambda: float(self.now_s))):
            while self.now_s < until_s:
                self.step(arrival(self.now_s))
        return self

    def running(self, late_s: int = 0) -> int:
        return sum(self.now_s - asked >= self.START_S + late_s for asked in self.started)

    def step(self, arrival: float) -> None:
        if any(self.now_s - asked == self.START_S for asked in self.started):
            self.rebalanced = self.now_s
        working = self.running(self.REBALANCE_S) if self.now_s > self.rebalanced + self.REBALANCE_S else 0
        self.lag = max(0.0, self.lag + arrival - working * self.SERVICE)
        self.lags.append(self.lag)
        if self.now_s % self.REPORT_S == 0:
            self.report(arrival, working)
        self.scale()
        self.now_s += 1

    def report(self, arrival: float, owners: int) -> None:
        """While partitions have no owner nobody speaks of them."""

        def noisy(value: float) -> float:
            return value * (1 + self.random.uniform(-self.noise, self.noise))

        share = [self.PARTITIONS // owners + (n < self.PARTITIONS % owners) for n in range(owners)] if owners else []
        for number in range(self.running()):
            owned = share[number] if number < owners else 0
            part = owned / self.PARTITIONS
            self.reported[replica(number)] = ReplicaStats(
                self.PARTITIONS, owned, self.lag * part, noisy(arrival) * part, noisy(self.SERVICE)
            )

    def scale(self) -> None:
        running = self.running()
        alive = {replica(number): self.reported.get(replica(number)) for number in range(running)}
        self.reported = {name: stats for name, stats in alive.items() if stats}
        context = AutoscalingContext(
            deployment_id=DeploymentID("Replica", "app"),
            deployment_name="Replica",
            app_name="app",
            current_num_replicas=running,
            target_num_replicas=self.target,
            running_replicas=list(alive),
            total_num_requests=0.0,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={
                field.name: {
                    name: [TimeStampedValue(0.0, -1.0), TimeStampedValue(1.0, getattr(stats, field.name))]
                    for name, stats in self.reported.items()
                }
                for field in dataclasses.fields(ReplicaStats)
            },
            capacity_adjusted_min_replicas=1,
            capacity_adjusted_max_replicas=8,
            policy_state=dict(self.state),
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=float(self.now_s),
            config=self.config,
        )
        target, self.state = self.policy(context)
        json.dumps(self.state)
        if target != self.target:
            self.changes.append((self.now_s, target))
            self.started = (self.started + [self.now_s] * 8)[:target]
            if target < self.target:
                self.rebalanced = self.now_s
            self.target = target


def replica(number: int) -> ReplicaID:
    return ReplicaID(str(number), DeploymentID("Replica", "app"))


def step(now_s: int) -> float:
    """A tenth of what one replica can do, three times as much as it can, a tenth."""
    return 300.0 if 300 <= now_s < 1200 else 10.0


class TestUnderServe:
    @pytest.mark.parametrize("drain_target_s", [60, 120, 240])
    def test_a_step_is_followed_in_few_changes_and_drained_in_time(self, drain_target_s: int) -> None:
        cluster = Cluster(drain_target_s=drain_target_s).run(step, 2400)
        up = [target for at_s, target in cluster.changes if at_s < 1200]
        down = [target for at_s, target in cluster.changes if at_s >= 1200]
        assert len(up) <= 3  # the jump, one step back when the lag is gone, and a second thought
        assert up[0] >= 4
        assert [up[-1], *down] == list(range(up[-1], 0, -1))
        # Known after a report, wanted for upscale_delay_s, started, given partitions; and then the drain.
        late_s = cluster.REPORT_S + 30 + cluster.START_S + cluster.REBALANCE_S
        assert max(cluster.lags[300 + late_s + drain_target_s : 1200]) <= 300 * cluster.REBALANCE_S

    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.floats(20, 700))
    def test_noise_does_not_make_it_flap(self, seed: int, arrival: float) -> None:
        """A fifth of noise in all that is measured; the load itself stays."""
        cluster = Cluster(noise=0.2, seed=seed).run(lambda _: arrival, 1800)
        numbers = [1, *(target for _, target in cluster.changes)]
        upwards = [after > before for before, after in pairwise(numbers)]
        assert sum(one != other for one, other in pairwise(upwards)) <= 1
        assert sum(at_s > 900 for at_s, _ in cluster.changes) <= 1

    @settings(max_examples=25)
    @given(st.lists(st.tuples(st.integers(20, 200), st.sampled_from([0, 5, 40, 90, 400, 900])), min_size=3, max_size=8))
    def test_each_change_comes_after_its_delay_whatever_arrives(self, trace: list[tuple[int, int]]) -> None:
        arrivals = [float(rate) for length_s, rate in trace for _ in range(length_s)]
        cluster = Cluster(noise=0.2).run(lambda now_s: arrivals[now_s], len(arrivals))
        before_s, number = 0, 1
        for at_s, target in cluster.changes:
            assert at_s - before_s >= (30 if target > number else 120)
            assert target > number or target == number - 1 or target == 1
            before_s, number = at_s, target

    def test_each_change_is_logged_with_the_numbers_that_led_to_it(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="ray.serve"):
            cluster = Cluster().run(step, 2400)
        said = [record.getMessage() for record in caplog.records if "twinlens: from" in record.getMessage()]
        assert len(said) == len(cluster.changes)
        assert all("lag_records=None" not in line and "arrival_records_per_s" in line for line in said)

    def test_nothing_happens_while_nobody_reports(self) -> None:
        cluster = Cluster()
        cluster.report = lambda *_: None  # type: ignore[method-assign]
        assert cluster.run(step, 900).changes == []


class TestSettings:
    @pytest.mark.parametrize(
        ("wrong", "named"),
        [
            ({"drain_target_s": 0}, "drain_target_s"),
            ({"drain_target_s": "60"}, "drain_target_s"),
            ({"drain_target_s": math.nan}, "drain_target_s"),
            ({"target_utilization": 0}, "target_utilization"),
            ({"target_utilization": 1.1}, "target_utilization"),
            ({"downscale_margin": -0.1}, "downscale_margin"),
            ({"downscale_margin": True}, "downscale_margin"),
            ({"drain_target": 60}, "drain_target"),
        ],
    )
    def test_wrong_arguments_turn_scaling_off_and_are_named(
        self, wrong: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception would end Serve's control loop for all applications."""
        with caplog.at_level("ERROR", logger="ray.serve"):
            policy = LagPolicy(**wrong)
        assert any(re.search(rf"\b{named}\b", record.getMessage()) for record in caplog.records)
        context: Any = SimpleNamespace(target_num_replicas=3)
        assert policy(context) == (3, {})

    def test_every_argument_is_documented_with_its_default(self) -> None:
        section = (ROOT / "docs" / "operations.md").read_text().partition("| argument |")[2].partition("\n\n")[0]
        documented = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", section, re.MULTILINE))
        defaults = {field.name: f"{field.default:g}" for field in dataclasses.fields(AutoscalingSettings)}
        assert documented == defaults


class TestConfigFile:
    def test_the_block_in_the_model_file_works_once_it_is_no_comment(self) -> None:
        lines = (ROOT / "deploy" / "serve.yaml").read_text().splitlines()
        start = next(n for n, line in enumerate(lines) if "num_replicas:" in line)
        kept = [re.sub(r"^( +)# (?= *\w+:)", r"\1", line) for n, line in enumerate(lines) if n != start]
        config = yaml.safe_load("\n".join(kept))
        check_autoscaling(config["applications"][0], Settings())
        deployment = ServeDeploySchema.model_validate(config).applications[0].deployments[0]
        assert deployment.autoscaling_config["max_replicas"] == 4
        assert deployment.autoscaling_config["policy"]["policy_kwargs"] == {"drain_target_s": 120}

    @pytest.mark.parametrize(
        ("deployment", "named"),
        [
            ({"autoscaling_config": {"max_replicas": 4}}, LAG_POLICY),
            ({"num_replicas": "auto"}, LAG_POLICY),
            ({"autoscaling_config": {"policy": {"policy_kwargs": {}}}}, LAG_POLICY),
            (
                {"autoscaling_config": {"policy": {"policy_function": LAG_POLICY, "policy_kwargs": {"drain_s": 1}}}},
                "drain_s",
            ),
        ],
    )
    def test_what_cannot_work_is_refused(self, deployment: dict[str, Any], named: str) -> None:
        with pytest.raises(AskUser, match=re.escape(named)):
            check_autoscaling({"deployments": [{"name": "Replica", **deployment}]}, Settings())

    def test_static_members_are_refused(self) -> None:
        static = Settings.load({"kafka": {"static_membership": True}})
        scaled = {"autoscaling_config": {"policy": {"policy_function": LAG_POLICY}}}
        check_autoscaling({"deployments": [{"name": "Replica", "num_replicas": 2}]}, static)
        with pytest.raises(AskUser, match="static_membership"):
            check_autoscaling({"deployments": [{"name": "Replica", **scaled}]}, static)

    @pytest.mark.parametrize(
        "deployment",
        [
            {"num_replicas": 2},
            {},
            {"autoscaling_config": {"policy": {"policy_function": LAG_POLICY}}},
            {"autoscaling_config": {"policy": {"policy_function": "mine:policy", "policy_kwargs": {"x": 1}}}},
        ],
    )
    def test_what_works_is_taken(self, deployment: dict[str, Any]) -> None:
        check_autoscaling({"deployments": [{"name": "Replica", **deployment}, {"name": "Monitor"}]}, Settings())
        check_autoscaling({}, Settings())


@pytest.fixture(autouse=True)
def controller_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Serve's logger does not hand on to the root logger, where caplog listens."""
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)
