"""Which test holds the text of each bad input that users meet; each row is one, by the part of the project it is of."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
STRATEGY_RULES = "genetic_algorithm/strategies/test_contract.py"
OWN_STRATEGY, OWN_TASKS = "genetic_algorithm/test_own_strategy.py", "evaluation/test_own_tasks.py"
HELD = [
    # The road: search, folders, layers.
    ("layers out of range", "evaluation/test_engine.py", "does not exist; the model has layers 0 to 3"),
    ("layers repeated", "genetic_algorithm/test_layer_set.py", "layer 1 is named twice"),
    ("no layers given", "model_preparation/test_create_checkpoint.py", "no layers are given"),
    ("a donor of another width or depth", "models/test_hybrid.py", "differ in"),
    ("a layer file that is missing", "models/test_hybrid.py", r"layer_00\.pt is missing"),
    ("a weight file cut off", "models/test_loading.py", "damaged or cut short"),
    ("a journal cut off", "evaluation/test_journal.py", "is dropped; its answers are asked again"),
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
    ("an interrupted download", "model_preparation/hubs/test_downloads.py", "and run again to go on"),
    ("no room for a download", "model_preparation/hubs/test_refusals.py", "no room for org/model: "),
    ("no room for a checkpoint", "model_preparation/test_create_checkpoint.py", "GB free and this needs"),
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
    ("kernels that do not run", "models/packed/test_choose.py", "running on plain PyTorch"),
    ("a GPU that another process fills", "evaluation/test_build.py", "nvidia-smi tells what fills it"),
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
    # A user's own strategy, task and pair.
    ("a strategy that is made of nothing", STRATEGY_RULES, "is not made of one `setting`; begin"),
    ("what is no request", STRATEGY_RULES, "which is no Request; let it `yield"),
    ("what is no layer set", STRATEGY_RULES, "which is no LayerSet; write LayerSet"),
    ("an unknown part", STRATEGY_RULES, "the questions have no part 'fastt'; their parts are fast"),
    ("a set outside the space", STRATEGY_RULES, "which is not in the space: "),
    (
        "a loop without end",
        STRATEGY_RULES,
        "it asks without anything coming of it; its loop must end when `ledger.left`",
    ),
    ("a run that returns nothing", STRATEGY_RULES, "`run` returned None, which holds no requests"),
    ("a forecast that lacks a stage", STRATEGY_RULES, "is of the stages wrong, verification, but its stages are look"),
    ("details that are no JSON", STRATEGY_RULES, "of 'look' is not JSON (Object of type LayerSet is"),
    ("a strategy that verifies nothing", STRATEGY_RULES, "ended without a set in its ranking, though none failed; end"),
    ("a strategy's file named as a module", OWN_STRATEGY, "names a file, not a module; did you mean steps:Steps?"),
    (
        "an import that fails in it",
        OWN_STRATEGY,
        "steps.py, line 1: ModuleNotFoundError: No module named 'numpyy'; install it",
    ),
    ("a question without an answer", "evaluation/test_questions.py", "has no `answer`; give the number of the right"),
    ("an answer that is no choice", "evaluation/test_questions.py", "is answered by 4, which is none of its 4 choices"),
    ("a question that lacks a key", OWN_TASKS, "question 2 (counted from 0) has no `choices`, which"),
    ("a task that lacks a key", OWN_TASKS, "has no doc_to_text; add it, such as `doc_to_text: "),
    ("a task without a split", OWN_TASKS, "has no test_split; add `test_split: test`"),
    ("a task without a type", OWN_TASKS, "has no output_type; add `output_type: multiple_choice`"),
    ("a function that is a text", OWN_TASKS, "a text; write `custom_dataset: !function evaluation.own_"),
    ("a folder without a task", OWN_TASKS, "has no task: there is no file "),
    ("an unknown key of a pair", "models/test_pair_file.py", "there is no 'donr' in a pair; the nearest is 'donor'"),
    ("a model of a pair that is no folder", "models/test_pair_file.py", "there is no folder '{folder}/bse'"),
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
    ("clocks that differ", "scripts/test_run_folders.py", "the clock where the search runs is 10 min ahead"),
]


@pytest.mark.parametrize(("what", "file", "text"), HELD, ids=[row[0] for row in HELD])
def test_the_text_is_held(what: str, file: str, text: str) -> None:
    assert not text.startswith("test_"), "the name of a test holds no text"
    assert text in (HERE / file).read_text(encoding="utf-8"), f"no test in {file} holds what is said to {what}"
