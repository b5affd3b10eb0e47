"""Repairs of kafka-python, each of a defect seen in version 3.0.12.

Each defect has a test on kafka-python without the repair. It fails when the repair is no longer needed, and its message
says what to remove. Names without a file are in tests/integration/test_repairs.py; those marked (u) are in
tests/unit/test_repairs.py. Why kafka-python all the same: docs/decisions/0005-kafka-client.md.

| repair | defect | test |
|---|---|---|
| assignor.py `assign` | of two claims to a partition one is believed | (u) `test_an_assignor_gives_a_disputed_partition_to_one_of_the_two` |
| assignor.py `forget` | an evicted member claims what it has lost | `test_a_member_that_was_evicted_claims_what_it_had` |
| membership.py `is_member` | group metadata is empty after an eviction | `test_a_member_that_was_evicted_has_no_name_before_it_tells` |
| membership.py `replaced`, `adopt` | no callback for some evictions | `test_a_member_that_learns_of_its_eviction_from_a_join_says_nothing` |
| membership.py `keep_joining` | a join is forgotten | `test_a_join_that_ends_between_two_polls_is_forgotten` |
| membership.py `forget_answers` | an old committed offset is returned | `test_the_answer_to_a_question_whose_asker_gave_up_is_given_to_the_next` |
| connections.py `get_connection`, `_do_bootstrap` | the reason of a failure is hidden | (u) `test_a_client_that_no_other_try_helps_tells_only_that_time_is_up` |
| connections.py `bootstrap` | a failed client leaves threads | (u) `test_a_client_that_cannot_be_made_leaves_a_thread` |
| connections.py `_build_transport` | a failed handshake leaves a socket | (u) `test_a_socket_whose_handshake_fails_is_left_to_the_garbage_collector` |
| connections.py `_data_before_the_end` | the last data of a connection is dropped | (u) `test_what_is_read_together_with_the_end_of_a_connection_is_dropped` |
| producer.py `outlive_unreachable_coordinators` | a request is lost, its caller waits for ever | `test_a_request_to_a_coordinator_that_cannot_be_reached_is_forgotten` |
| producer.py `close_producer` | `close` raises and leaves its thread | `test_a_producer_that_cannot_flush_cannot_be_closed` |
| recordbatch.py | no defect: a call per record is slow | (u) `test_a_record_costs_a_send_of_its_own` |

A few lines elsewhere are repairs, too. They stay in the logic that they belong to.

| where | defect | test |
|---|---|---|
| broker/publisher.py `_learn` | `flush` fails when a batch was split | `test_a_flush_fails_where_a_batch_was_split` |
| broker/publisher.py `_abort` | offsets that the group refused go with the next transaction | `test_offsets_that_the_group_refused_go_with_the_next_transaction` |
| broker/publisher.py, broker/replay.py: futures are checked before a commit | a transaction is committed without a record whose delivery timed out | `test_a_transaction_is_committed_without_a_record_that_was_given_up` |
| broker/publisher.py `retry_backoff_ms` | the sender sleeps its whole backoff | `test_a_transaction_that_must_wait_for_the_one_before_waits_the_whole_backoff` |
| broker/publisher.py `busy_s`, broker/replay.py `_abort` | transactional calls ignore `max_block_ms` | `test_a_commit_waits_for_longer_than_it_may` |
| broker/client.py `TRANSIENT` | two passing errors are not called retriable | (u) `test_errors_that_pass_by_themselves_are_not_called_retriable` |
| monitor/lag.py: a new probe after an error | an admin client never asks again for a coordinator | `test_an_admin_client_never_asks_again_who_coordinates` |
"""  # noqa: E501 - tables
