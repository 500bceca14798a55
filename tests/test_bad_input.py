"""Which test holds the text of each bad input that users meet; each row is one, by the part of the project it is of."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HELD = [
    # The road: search, folders, layers.
    ("layers out of range", "evaluation/test_engine.py", "is out of range; the model's layers are 0 to 3"),
    ("layers repeated", "genetic_algorithm/test_layer_set.py", "layer 1 is named twice"),
    ("no layers given", "model_preparation/test_create_checkpoint.py", "no layers are given"),
    ("a donor of another width or depth", "models/test_hybrid.py", "differ in"),
    ("a layer file that is missing", "models/test_hybrid.py", r"layer_00\.pt is missing"),
    ("a weight file cut off", "models/test_loading.py", "damaged or cut short"),
    ("a journal cut off", "evaluation/test_journal.py", "test_a_torn_last_line_is_dropped_with_a_warning"),
    ("a journal of another configuration", "evaluation/test_journal.py", 'dtype was "float32" and is now "bfloat16"'),
    ("a journal that is missing", "genetic_algorithm/test_interruptions.py", "journal.jsonl is missing: all questions"),
    ("an unknown pair", "evaluation/test_build.py", "no pair is called 'tony'"),
    ("an unknown task", "evaluation/test_tasks.py", "unknown task or subject 'toy_shirt'; did you mean"),
    ("an unknown subject", "evaluation/test_tasks.py", "unknown task or subject 'mmlu_anatomi' of MMLU"),
    ("a folder that is no run", "genetic_algorithm/test_run_search.py", "is not empty and not a search run"),
    ("a run of another configuration", "genetic_algorithm/test_run_search.py", "search.seed was 0 and is now 1"),
    ("a full disk", "genetic_algorithm/test_interruptions.py", "run_search: error: the disk is full for "),
    ("Ctrl-C in a search", "test_ctrl_c.py", "run_search: stopped; nothing is lost; resume with: "),
    ("Ctrl-C in other tools", "test_ctrl_c.py", "stopped; files that were complete are kept."),
    # Models and checkpoints.
    ("a folder that is no model", "model_preparation/hubs/test_refusals.py", "no config.json and no model"),
    ("a shard that is missing", "models/test_loading.py", '"is missing", "2 shards"'),
    ("a checksum that differs", "model_preparation/test_test_checkpoint.py", "differ from what was written"),
    ("an interrupted download", "model_preparation/hubs/test_downloads.py", "test_a_download_that_was_killed_goes_on"),
    ("no room for a download", "model_preparation/hubs/test_refusals.py", "no room for org/model: "),
    ("no room for a checkpoint", "model_preparation/test_create_checkpoint.py", "test_a_disk_with_too_little_room_is"),
    ("a target that is read-only", "model_preparation/test_writing_checkpoints.py", '"not permitted" in told'),
    ("a checkpoint of a newer version", "model_preparation/test_writing_checkpoints.py", "from a newer GA Layer"),
    ("a tokenizer that is missing", "model_preparation/test_unusable_parts.py", "the tokenizer in"),
    ("weights with NaN", "model_preparation/test_tensor_stream.py", "the tensor spoiled holds NaN"),
    # The engine.
    ("a text longer than the model", "evaluation/test_lm.py", "are longer than 10 tokens: cut on the left"),
    ("a choice longer than the model", "evaluation/test_lm.py", "the continuation has 11 tokens, the model takes 10"),
    ("a task that is not multiple choice", "evaluation/test_tasks.py", "gsm8k is of type generate_until, not multiple"),
    ("an empty subject", "evaluation/test_tasks.py", "holds no test questions"),
    ("a choice without tokens", "evaluation/test_questions.py", "choice 1 of question 0 of task blank has no tokens"),
    ("NaN in the logits", "evaluation/test_engine.py", "give scores that are not numbers"),
    ("memory that runs out", "evaluation/test_lm.py", "out of memory on cpu: going on with"),
    ("kernels that do not run", "models/packed/test_choose.py", "test_kernels_that_do_not_run_give_way_with_a_warning"),
    # The search.
    ("constraints that cannot be met", "genetic_algorithm/test_command_line.py", "--min-layers 3 cannot be met"),
    ("a budget below the least", "genetic_algorithm/test_command_line.py", "is below the least useful one here, "),
    ("wrong shapes", "genetic_algorithm/test_command_line.py", "the evaluator gave correct of shape "),
    ("NaN margins", "genetic_algorithm/test_command_line.py", "the evaluator gave NaN as margin"),
    ("duplicate answers", "genetic_algorithm/test_command_line.py", "the evaluator answered twice for none"),
    ("no answer", "genetic_algorithm/test_command_line.py", "the evaluator gave no answer for it"),
    ("an evaluator that raises", "genetic_algorithm/test_command_line.py", "RuntimeError: layer 7 does not fit"),
    ("too many failures", "genetic_algorithm/test_command_line.py", "more than --max-failed 0.1 allows"),
    ("scores of another model", "genetic_algorithm/test_run_search.py", "scores layer 12, but the model's layers are"),
    # Jobs.
    ("no GPU where one is asked for", "evaluation/test_doctor.py", "this machine has no GPU"),
    ("a GPU that does not exist", "evaluation/cluster/test_options.py", "this machine has GPUs 0 to 1; give others"),
    ("a GPU that is full", "evaluation/test_memory.py", "GB are free; give another --gpu"),
    ("Ray that is not installed", "evaluation/cluster/test_joining.py", "need Ray, which is not installed"),
    ("Ray of another version", "evaluation/cluster/test_joining.py", "that of this host is 9.9; install the same"),
    ("workers that would answer otherwise", "evaluation/cluster/test_driver.py", "it would answer otherwise: seed"),
    ("a results volume that is read-only", "docker/test_entrypoint.py", "cannot write in"),
    ("two runs in one folder", "genetic_algorithm/test_run_search.py", "another search is running"),
    # Settings.
    ("an unknown key", "genetic_algorithm/test_settings.py", "there is no setting 'populaton'; the nearest is"),
    ("a value of a wrong type", "genetic_algorithm/test_settings.py", "'many' cannot be (invalid int value: 'many')"),
    ("a file that is no YAML", "genetic_algorithm/test_settings.py", "is not YAML ("),
]


@pytest.mark.parametrize(("what", "file", "text"), HELD, ids=[row[0] for row in HELD])
def test_the_text_is_held(what: str, file: str, text: str) -> None:
    assert text in (HERE / file).read_text(encoding="utf-8"), f"no test in {file} holds what is said to {what}"
