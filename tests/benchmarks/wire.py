"""Sending records for next to no CPU time: a batch is a request, on a socket of our own.

A KafkaProducer takes a fifth of a core at 400 records a second, which distorts what is measured on a small machine. A
`Wire` knows one broker without TLS, sends without waiting, and counts the answers that came meanwhile.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable
from typing import Any

from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.producer.produce import ProduceRequest
from kafka.record.memory_records import MemoryRecordsBuilder

VERSION = 9
TIMEOUT_S = 30.0
BATCH_BYTES = 1024 * 1024
RECEIVE_BYTES = 64 * 1024


class Wire:
    """Writes to one topic of the broker at `address` (host:port), which has to lead all its partitions."""

    def __init__(self, address: str, topic: str) -> None:
        host, _, port = address.rpartition(":")
        self._topic = topic
        self._protocol = KafkaProtocol(client_id="benchmark")
        self._socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open = 0  # requests without an answer
        self._failed = 0

    def send(self, partition: int, records: Iterable[tuple[int, bytes]]) -> None:
        """One batch of (timestamp in ms, value)."""
        builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=BATCH_BYTES)
        for timestamp_ms, value in records:
            builder.append(timestamp_ms, None, value)
        builder.close()
        topic: Any = ProduceRequest.TopicProduceData
        batch = topic.PartitionProduceData(index=partition, records=builder.buffer())
        request = ProduceRequest(
            transactional_id=None,
            acks=1,
            timeout_ms=int(TIMEOUT_S * 1000),
            topic_data=[topic(name=self._topic, partition_data=[batch])],
            version=VERSION,
        )
        self._protocol.send_request(request)
        self._socket.sendall(self._protocol.send_bytes())
        self._open += 1
        # The broker reads no further request of ours while it cannot get rid of its answers.
        while select.select([self._socket], [], [], 0)[0]:
            self._take(self._socket.recv(RECEIVE_BYTES))

    def refused(self) -> int:
        """How many batches since the last call the broker did not store; waits for its answers."""
        while self._open:
            self._take(self._socket.recv(RECEIVE_BYTES))
        failed, self._failed = self._failed, 0
        return failed

    def _take(self, received: bytes) -> None:
        assert received, "the broker has closed the connection"
        for _, response in self._protocol.receive_bytes(received):
            self._open -= 1
            self._failed += response.responses[0].partition_responses[0].error_code != 0

    def close(self) -> None:
        self._socket.close()
