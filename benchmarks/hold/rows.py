"""The faults that an audit found, and the tests that show each of them mended. For docs/reliability.md.

A test is named by its file, without `tests/`, and its function. Measures nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A kind of fault. `row` is its letter in the audit. `tests` failed before it was mended."""

    row: str
    fault: str
    tests: tuple[str, ...]


_ATTACKERS = "contract/test_gateway_attackers.py"
_HOSTILE = "unit/service/preprocess/test_hostile_pictures.py"
_POOL = "unit/service/preprocess/test_pool.py"
_SUPERVISOR = "unit/service/app/test_supervisor.py"
_WORKERS = "unit/service/transport/test_worker_connections.py"
_STARTUP = "unit/service/app/test_startup_checks.py"

FOUND = (
    Found(
        "A",
        "memory of a mask follows side x side",
        ("unit/service/frontends/test_tasks.py::test_memory_of_masks_is_bounded_by_the_pixels_of_the_picture",),
    ),
    Found(
        "B",
        "a health watch that is not read blocks readiness and shutdown",
        (
            "contract/test_gateway_health_watches.py::test_a_watch_without_a_window_holds_up_no_report_and_no_shutdown",
            "contract/test_gateway_health_watches.py::test_watches_are_limited_and_the_limit_is_free_again",
        ),
    ),
    Found(
        "C",
        "a long name blocks the event loop",
        (
            "contract/test_gateway_hostile_requests.py::test_an_endless_name_is_refused_and_holds_up_nobody",
            "contract/test_gateway_hostile_requests.py::test_a_name_has_at_most_256_characters",
        ),
    ),
    Found(
        "D",
        "a small file decodes to gigabytes",
        (
            f"{_HOSTILE}::test_memory_of_a_decode_is_known_before_it_and_limited",
            f"{_HOSTILE}::test_a_tile_larger_than_its_picture_counts_whole",
            f"{_POOL}::test_threads_wait_for_the_memory_of_others",
        ),
    ),
    Found(
        "E",
        "a small file decodes for hours, or on the event loop",
        (
            f"{_HOSTILE}::test_pictures_that_take_long_to_decode_are_refused_at_once",
            f"{_POOL}::test_a_baseline_jpeg_of_many_scans_is_decoded_in_a_thread",
            "contract/test_gateway_health.py::test_a_decode_that_does_not_end_fails_the_probes_and_not_the_shutdown",
        ),
    ),
    Found(
        "F",
        "memory of calls is counted and not weighed",
        (
            f"{_ATTACKERS}::test_pictures_that_wait_are_bounded_in_bytes",
            f"{_ATTACKERS}::test_half_sent_requests_do_not_fill_the_memory",
            f"{_ATTACKERS}::test_connections_and_streams_are_bounded",
        ),
    ),
    Found(
        "G",
        "slow rendering of some masks makes an idle server refuse",
        (
            "unit/service/batching/test_rendering_model.py::test_each_class_of_size_has_a_prediction_of_its_own",
            "unit/service/batching/test_batcher_deadlines.py::test_a_wrong_prediction_of_rendering_ends_by_itself",
        ),
    ),
    Found(
        "H",
        "decoding knows no priority and admission no decoding",
        (
            f"{_POOL}::test_interactive_pictures_and_early_deadlines_are_decoded_first",
            "unit/service/batching/test_batcher_deadlines.py"
            "::test_a_call_whose_picture_would_wait_too_long_for_decoding_is_refused",
        ),
    ),
    Found(
        "I",
        "one hung worker makes a model refuse",
        (
            f"{_WORKERS}::test_a_worker_that_hangs_is_killed_and_its_batch_is_lost_to_it",
            f"{_WORKERS}::test_other_workers_run_the_batches_of_a_hung_one",
            "integration/test_shared_memory.py::test_a_hung_worker_is_replaced_within_seconds",
        ),
    ),
    Found(
        "J",
        "one broken model takes all models down",
        (
            "integration/test_quarantine.py::test_a_broken_model_is_held_back_while_the_other_serves_and_comes_back",
            "unit/service/engines/test_container.py::test_one_broken_model_does_not_end_the_others",
        ),
    ),
    Found(
        "K",
        "one gateway process takes all processes down, or hangs for ever",
        (
            f"{_SUPERVISOR}::test_a_process_that_cannot_be_restarted_is_tried_again_while_the_other_serves",
            f"{_SUPERVISOR}::test_a_process_that_hangs_is_killed_and_restarted",
            f"{_SUPERVISOR}::test_a_frozen_process_is_found_within_the_bound_of_10_seconds",
        ),
    ),
    Found(
        "L",
        "an exception ends the health task for ever",
        (
            "contract/test_gateway_health.py"
            "::test_an_unexpected_exception_makes_models_not_ready_and_ends_no_background_task",
            "unit/service/core/test_background.py::test_a_task_that_fails_is_logged_reported_and_started_again",
        ),
    ),
    Found(
        "M",
        "the age of a connection cuts calls in work",
        (f"{_ATTACKERS}::test_calls_in_work_outlive_the_age_of_their_connection",),
    ),
    Found(
        "N",
        "another user listens on the port of a JVM that ended",
        (
            "unit/service/engines/test_channel.py::test_a_process_of_another_user_gets_nothing",
            "integration/test_embedded.py::test_a_killed_jvm_is_started_again_on_fresh_ports",
            f"{_WORKERS}::test_a_process_of_another_user_is_no_worker",
        ),
    ),
    Found(
        "O",
        "the HTTP port has a thread per connection",
        (
            "contract/test_probe_server.py"
            "::test_silent_connections_hold_a_bounded_number_of_threads_and_probes_are_answered",
            "contract/test_probe_server.py::test_slow_headers_are_cut",
        ),
    ),
    Found(
        "P",
        "malformed messages end outside the error contract",
        (
            "contract/test_gateway_hostile_requests.py::test_a_malformed_message_ends_inside_the_error_contract",
            "contract/test_gateway_hostile_requests.py::test_what_grpc_itself_refuses_is_as_the_proto_says",
        ),
    ),
    Found(
        "Q",
        "SIGTERM to the process group loses the drain",
        (
            "unit/service/app/test_stop_signal.py::test_a_signal_that_comes_twice_lets_the_process_drain",
            "integration/test_replicas.py::test_sigterm_to_the_process_group_under_load_loses_no_call",
            "deploy/test_systemd.py::test_only_the_server_gets_the_signal_and_there_is_time_for_its_drain",
        ),
    ),
    Found(
        "R",
        "smaller faults: left directories, paths, addresses, memory errors, words of workers, digests",
        (
            "unit/service/core/test_locked_directory.py"
            "::test_the_directory_of_a_killed_process_is_removed_and_that_of_a_living_one_stays",
            "unit/service/engines/test_run_directory.py::test_java_reads_every_path_back",
            "contract/test_gateway_addresses.py::test_a_gateway_answers_on_ipv6_addresses",
            "contract/test_front.py::test_too_little_memory_is_no_fault_of_the_caller_and_can_be_retried",
            "contract/test_front.py::test_the_text_of_a_workers_exception_stays_in_the_log",
            "unit/service/preprocess/test_small_parts.py::test_a_picture_of_very_many_small_parts_is_refused",
            "contract/test_log_lines.py::test_pillow_logs_nothing",
            "unit/service/transport/test_slots.py::test_slots_grow_again_when_memory_is_free_again",
            "contract/test_refused_archives.py::test_changed_code_is_refused_without_any_setting",
            "unit/hold/test_findings.py::test_the_largest_picture_fits_into_a_message_of_grpc",
        ),
    ),
    Found(
        "S",
        "bursts end as CANCELLED without a reason",
        (f"{_ATTACKERS}::test_a_burst_while_the_event_loop_is_busy_gets_answers_or_reasons",),
    ),
    Found(
        "T",
        "requests that never arrive hold memory, and freed memory is kept",
        (
            f"{_ATTACKERS}::test_a_request_that_never_arrives_is_cut_off_and_counted",
            "unit/service/frontends/test_memory_guard.py::test_memory_is_given_back_after_growth",
        ),
    ),
    Found(
        "U",
        "callers write into the log",
        (
            "contract/test_log_lines.py::test_each_line_of_the_log_is_one_json_object_whatever_clients_send",
            "contract/test_probe_server.py::test_a_client_that_leaves_early_prints_no_traceback",
        ),
    ),
    Found(
        "V",
        "readiness and counters are wrong while a worker hangs",
        (
            "unit/service/serving/test_readiness.py::test_readiness",
            "unit/service/engines/test_model_keeper.py"
            "::test_a_worker_process_that_took_the_place_of_another_is_counted_once",
        ),
    ),
    Found(
        "W",
        "what cannot work is found only after the start",
        (
            f"{_STARTUP}::test_a_ready_file_needs_a_folder_that_can_be_written",
            f"{_STARTUP}::test_a_missing_run_directory_is_found_before_anything_starts",
            f"{_STARTUP}::test_too_few_open_files_are_refused_and_few_leave_fewer_connections",
            "contract/test_open_files.py::test_probes_are_answered_while_more_clients_connect_than_files_can_be_open",
        ),
    ),
)
