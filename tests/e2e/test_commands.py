"""The command line as a person uses it: separate processes, exit codes, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Deployed
from tests.support.replicas import lines, wait_until
from twinlens.cli.options import load_settings
from twinlens.demo.embedded import embedded_broker
from twinlens.serving.cluster import free_port

COMMAND = [sys.executable, "-m", "twinlens.cli.main"]
DEADLINE_S = 120


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with embedded_broker() as found:
        yield found


@pytest.fixture
def mark() -> Iterator[dict[str, str]]:
    """An environment that marks every process started in it; none may be left after the test."""
    name = uuid.uuid4().hex
    yield {**os.environ, "TWINLENS_TEST_MARK": name} | {"COLUMNS": "150"}
    wait_until(lambda: not marked(name), f"these processes end: {marked(name)}", 20)


def marked(name: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if name.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue
    return found


def twinlens(*arguments: str, env: dict[str, str] | None = None, stdin: bytes | None = None) -> Any:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, timeout=DEADLINE_S, env=env, input=stdin, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["rollout"])
def test_demo_ends_by_itself_with_a_summary(mark: dict[str, str], scenario: str) -> None:
    done = twinlens("demo", "--duration", "16", "--rate", "100", "--scenario", scenario, "--json", env=mark)
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["produced"] == summary["published"] >= 1500
    assert (summary["missing"], summary["duplicate"], summary["dead_lettered"]) == (0, 0, 0)
    assert summary["alerts"] >= 1
    assert summary["label_divergences"] > 0
    assert summary["score_divergences"] > 0
    assert summary["divergence_rate_low"] < summary["divergence_rate"] < summary["divergence_rate_high"]
    diverging = summary["label_divergences"] + summary["score_divergences"] + summary["one_sided"]
    assert (summary["monitor_tweets"], summary["monitor_diverging"]) == (summary["published"], diverging)
    assert summary["latency_p50_s"] <= summary["latency_p99_s"]
    assert {"tweets_per_s", "latency_p50_s"} <= summary.keys()


@pytest.mark.slow
def test_demo_streams_a_file_once_and_dead_letters_what_it_cannot_read(mark: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_bytes(b"\n".join([*lines(50), b"not json", b'{"text": 5}']))
    # The environment may change settings, but not the broker; what is secret in it gets nowhere.
    own = {"TWINLENS_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "TWINLENS_KAFKA__SSL_PASSWORD": "secret"}
    done = twinlens("demo", "--source", str(source), "--rate", "0", "--scenario", "none", "--json", env={**mark, **own})
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["produced"], summary["published"], summary["dead_lettered"]) == (52, 50, 2)
    assert (summary["missing"], summary["duplicate"], summary["label_divergences"], summary["alerts"]) == (0, 0, 0, 0)


def take_ctrl_c() -> None:
    """In a new process: it inherits to ignore Ctrl-C where these tests are a shell's background job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["starting", "streaming"])
def test_ctrl_c_leaves_nothing_behind(mark: dict[str, str], when: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "demo", "--rate", "20", "--scenario", "none"],
        env=mark,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=take_ctrl_c,  # noqa: PLW1509 - no lock is taken
    ) as process:
        try:
            seen = b""
            while process.stdout is not None and when == "streaming" and b"streaming" not in seen:
                seen += process.stdout.read1()
                assert process.poll() is None, seen.decode()
            if when == "starting":  # Ray is about to: an interrupt in the middle of ray.init() would crash the process
                wait_until(lambda: any("raylet" in each for each in marked(mark["TWINLENS_TEST_MARK"])), "Ray starts")
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == (0 if when == "streaming" else 130), output.decode()
    assert b"Traceback" not in output
    if when == "streaming":
        assert b"0 missing" in output


def write_config(folder: Path, address: str, port: int, **args: Any) -> Path:
    name = f"cli-{uuid.uuid4().hex[:6]}"
    config = {
        "http_options": {"port": port},
        "applications": [
            {
                "name": name,
                "import_path": "twinlens.app:build",
                "args": {
                    "application": name,
                    "topics": {"input": name},
                    "kafka": {"bootstrap_servers": address, "session_timeout_ms": 2000},
                    **args,
                },
                "deployments": [{"name": "Replica", "ray_actor_options": {"num_cpus": 1}}],
            }
        ],
    }
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def create_topics(config: Path, env: dict[str, str]) -> None:
    created = twinlens("topics", "create", "-c", str(config), "--partitions", "2", env=env)
    assert created.returncode == 0, created.stderr.decode()
    assert b"6" not in twinlens("topics", "describe", "-c", str(config), env=env).stderr


def produce_watch_and_audit(config: Path, url: str, env: dict[str, str], check: Callable[[], None]) -> None:
    """200 tweets through an application that runs, by commands alone. `check` says that it still does."""
    produced = twinlens("produce", "-", "-c", str(config), env=env, stdin=b"\n".join(lines(200)))
    assert b"produced 200 records" in produced.stdout, produced.stderr.decode()

    def all_seen() -> bool:
        check()
        view = twinlens("watch", "--json", "--url", url, env=env)
        return view.returncode == 0 and json.loads(view.stdout)["summary"]["windows"]["all"]["tally"]["tweets"] == 200

    wait_until(all_seen, "200 tweets counted", 90)
    assert b"agreement" in twinlens("watch", "--once", "--url", url, env=env).stdout
    audited = twinlens("audit", "-c", str(config), "--json", env=env)
    assert audited.returncode == 0, audited.stderr.decode()
    report = json.loads(audited.stdout.splitlines()[-1])
    assert (report["consumed"], report["published"], report["missing"], report["duplicate"]) == (200, 200, 0, 0)


def test_produce_watch_and_audit_work_together(
    mark: dict[str, str], broker: str, deploy: Callable[..., Deployed], tmp_path: Path
) -> None:
    """On the Ray that the other tests use; the next test has one of its own."""
    config = write_config(tmp_path, broker, free_port())
    create_topics(config, mark)
    deployed = deploy(load_settings(config))
    produce_watch_and_audit(config, deployed.url, mark, lambda: None)


@pytest.mark.slow
def test_serve_produce_watch_and_audit_work_together(mark: dict[str, str], address: str, tmp_path: Path) -> None:
    port = free_port()
    config = write_config(tmp_path, address, port)
    create_topics(config, mark)
    assert twinlens("doctor", "-c", str(config), env=mark).returncode == 0
    log = (tmp_path / "serve.log").open("wb")
    serving = subprocess.Popen([*COMMAND, "serve", "-c", str(config)], env=mark, stdout=log, stderr=log)

    def check() -> None:
        assert serving.poll() is None, Path(log.name).read_text()

    try:
        produce_watch_and_audit(config, f"http://127.0.0.1:{port}", mark, check)
        with pytest.raises(ConnectionRefusedError):  # all of 127/8 is this machine, so it is 127.0.0.1 alone
            socket.create_connection(("127.0.0.2", port), 5).close()
    finally:
        serving.send_signal(signal.SIGTERM)
        try:
            serving.wait(60)
        finally:
            serving.kill()
            log.close()
    assert serving.returncode == 0, Path(log.name).read_text()


WRONG = {
    "unreachable broker": (
        ["serve", "-c", "CONFIG"],
        {"address": f"127.0.0.1:{free_port()}"},
        "No Kafka broker answers",
    ),
    "missing topic": (["serve", "-c", "CONFIG"], {}, "twinlens topics create"),
    "missing topic, audit": (["audit", "-c", "CONFIG"], {}, "twinlens topics create"),
    "missing topic, dlq": (["dlq", "show", "0/0", "-c", "CONFIG"], {}, "twinlens topics create"),
    "nobody to ask": (["dlq", "replay", "-c", "CONFIG"], {}, "Give --yes"),
    "wrong setting": (["serve", "-c", "CONFIG"], {"raw": {"dtype": "float8"}}, "raw.dtype"),
    "unknown setting": (["doctor", "-c", "CONFIG"], {"kafkaa": {}}, "kafkaa"),
    "secret in the file": (
        ["serve", "-c", "CONFIG"],
        {"kafka": {"sasl_password": "secret"}},
        "Set TWINLENS_KAFKA__SASL_PASSWORD",
    ),
    "no model": (
        ["doctor", "-c", "CONFIG"],
        {"raw": {"model": "/nowhere/model"}},
        "There is no model '/nowhere/model'",
    ),
    "no config": (["serve", "-c", "missing.yaml"], {}, "missing.yaml cannot be read"),
    "no tweets": (["produce", "missing.jsonl", "-c", "CONFIG"], {}, "missing.jsonl cannot be read"),
    "nothing served": (["watch", "--once", "--url", f"http://127.0.0.1:{free_port()}"], {}, "twinlens serve"),
}


#: It gives up after ten seconds.
SLOW_CASES = {"unreachable broker"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW_CASES else []) for case in WRONG]
)
def test_what_a_person_must_fix_is_one_sentence_and_exit_code_2(case: str, address: str, tmp_path: Path) -> None:
    arguments, args, expected = WRONG[case]
    config = write_config(tmp_path, args.pop("address", address) if "address" in args else address, free_port(), **args)
    done = twinlens(*(str(config) if a == "CONFIG" else a for a in arguments), env={**os.environ, "COLUMNS": "500"})
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 2, said
    assert expected in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_model_without_a_classifier_head_is_said_before_anything_starts(address: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from twinlens.settings import DEMO_MODEL

    folder = tmp_path / "encoder"
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(DEMO_MODEL) / name).read_bytes())
    config = write_config(tmp_path, address, free_port(), raw={"model": str(folder)})
    assert twinlens("topics", "create", "-c", str(config)).returncode == 0
    done = twinlens("serve", "-c", str(config))
    assert done.returncode == 2
    assert b"no classifier head" in done.stderr
    assert b"Traceback" not in done.stderr


def test_audit_exits_with_1_when_tweets_are_missing(address: str, tmp_path: Path) -> None:
    from kafka import TopicPartition
    from kafka.structs import OffsetAndMetadata

    from tests.support.replicas import produce
    from twinlens.broker.client import new_consumer

    path = write_config(tmp_path, address, free_port())
    assert twinlens("topics", "create", "-c", str(path), "--partitions", "1").returncode == 0
    settings = load_settings(path)
    produce(settings, [(None, line, []) for line in lines(3)])
    consumer = new_consumer(settings.kafka, group_id=settings.group_id)
    consumer.commit({TopicPartition(settings.topics.input, 0): OffsetAndMetadata(2, "", -1)})
    consumer.close()
    done = twinlens("audit", "-c", str(path), "--json")
    assert done.returncode == 1, done.stderr.decode()
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["consumed"], report["missing"]) == (2, 2), "the third one is not committed yet"
