"""Which arguments of transformers' Trainer a user may set, and what to use for those that are ours to set."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fusion.errors import TrainingError
from fusion.params import did_you_mean

# What Trainer has an argument for and a user says otherwise, or need not say.
OWNED = {
    "output_dir": "the training's own folder is used",
    "per_device_train_batch_size": "use batch_size: the rows of a step, shared by all processes",
    "auto_find_batch_size": "rows that do not fit the memory are split by themselves",
    "num_train_epochs": "use epochs",
    "max_steps": "use steps",
    "learning_rate": "use learning_rate, beside trainer",
    "warmup_steps": "use warmup, a share of the steps",
    "bf16": "use precision",
    "fp16": "use precision: bfloat16",
    "seed": "use the candidate's seeds",
    "data_seed": "use the candidate's seeds",
    "use_cache": "training has no cache",
    "use_cpu": "a GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES=''",
    "report_to": "curves.jsonl is sent by track",
    "run_name": "curves.jsonl is sent by track",
    "project": "curves.jsonl is sent by track",
    "disable_tqdm": "progress is shown by the driver",
    "remove_unused_columns": "rows are made by fuse-bench",
    "label_names": "rows are made by fuse-bench",
    "train_sampling_strategy": "rows are drawn from the seed",
    "length_column_name": "rows are drawn from the seed",
    "accelerator_config": "a step's rows are shared equally by the processes",
    "parallelism_config": "processes share a step's rows; no other way is supported",
    "average_tokens_across_devices": "a step's loss is the mean over all its tokens",
    "label_smoothing_factor": "the loss is the method's",
    "prediction_loss_only": "models are scored by the suite",
    "batch_eval_metrics": "models are scored by the suite",
    "include_for_metrics": "models are scored by the suite",
    "metric_for_best_model": "models are scored by the suite",
    "greater_is_better": "models are scored by the suite",
    "load_best_model_at_end": "models are scored by the suite",
    "include_num_input_tokens_seen": "tokens are counted in curves.jsonl",
    "ignore_data_skip": "a training that was killed goes on by itself",
    "resume_from_checkpoint": "a training that was killed goes on by itself",
    "restore_callback_states_from_checkpoint": "a training that was killed goes on by itself",
    "enable_jit_checkpoint": "a training that was killed goes on by itself",
    "local_rank": "torchrun and accelerate launch set it",
}
OWNED_PREFIXES = {
    "do_": "a training only trains",
    "eval_": "models are scored by the suite",
    "per_device_eval_": "models are scored by the suite",
    "save_": "checkpoints are written by themselves",
    "logging_": "curves.jsonl is written by itself",
    "log_on_": "curves.jsonl is written by itself",
    "dataloader_": "rows are made by fuse-bench",
    "push_to_": "nothing is sent to a hub",
    "hub_": "nothing is sent to a hub",
    "trackio_": "curves.jsonl is sent by track",
}

PLAIN: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number"}


FILES = ("deepspeed", "fsdp_config")


def with_files(trainer: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments with the content of files in the place of their paths, relative to `folder`.

    So what a file says decides what is made anew. Raises TrainingError for a file that is not there or no JSON object.
    """
    found = dict(trainer)
    for name in FILES:
        if isinstance(found.get(name), str):
            path = folder / found[name]
            try:
                found[name] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise TrainingError(f"trainer: {name} {path} cannot be read as JSON ({error})") from error
    return found


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Raises TrainingError for arguments that Trainer does not have, that are ours to set, or of another type."""
    if not trainer:
        return
    # Seconds to import, for what few recipes set.
    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments)}
    hints = get_type_hints(TrainingArguments)
    problems = [found for name, value in trainer.items() if (found := _problem(name, value, known, hints))]
    if problems:
        raise TrainingError("\n".join(problems))


def _problem(name: str, value: Any, known: set[str], hints: Mapping[str, Any]) -> str | None:
    if name not in known:
        hint = did_you_mean(name, (other for other in known if _owner(other) is None))
        return f"trainer: unknown argument {name!r} of transformers' TrainingArguments; {hint}"
    owner = _owner(name)
    if owner is not None:
        return f"trainer: {name} is not to be set; {owner}"
    # Only plain types are looked at: what may also be a path, a name or a mapping Trainer checks for itself.
    arms = get_args(hints[name]) or (hints[name],)
    kind = next((kind for kind in PLAIN if set(arms) <= {kind, type(None)}), None)
    if kind is None or (value is None and type(None) in arms):
        return None
    found = float if kind is float and type(value) is int else type(value)
    return None if found is kind else f"trainer: {name} is {value!r}; expected {PLAIN[kind]}"


def _owner(name: str) -> str | None:
    prefix = next((prefix for prefix in OWNED_PREFIXES if name.startswith(prefix)), None)
    return OWNED.get(name) or (OWNED_PREFIXES[prefix] if prefix else None)
