from inheritune.planning.estimate import PROCESS_BYTES, estimate_stage

PLAIN = {
    "parameters": 1_000_000, "depth": 4, "hidden_size": 128, "steps": 195, "batch_tokens": 2048,
    "micro_batch_tokens": 2048, "keep_checkpoints": 2, "logits_at_once": 2**20,
}  # fmt: skip


def test_the_line_names_parameters_steps_disk_and_memory():
    line = estimate_stage(**PLAIN).line("round 1 | depth 4")
    for part in ("round 1 | depth 4", "1M parameters", "195 steps of 2k tokens", "disk 52.0 MB", "memory about"):
        assert part in line


def test_disk_is_the_kept_checkpoints_the_open_one_one_in_the_making_and_the_model():
    assert estimate_stage(**PLAIN).disk_bytes == 4 * 12_000_000 + 4_000_000


def test_memory_grows_with_everything_that_takes_memory():
    base = estimate_stage(**PLAIN).memory_bytes
    assert base > PROCESS_BYTES + 16_000_000
    for name in ("parameters", "depth", "hidden_size", "micro_batch_tokens", "logits_at_once"):
        assert estimate_stage(**{**PLAIN, name: 2 * PLAIN[name]}).memory_bytes > base
    assert estimate_stage(**PLAIN, teacher_parameters=1000).memory_bytes == base + 4000
