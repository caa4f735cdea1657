"""What `make bench-evaluate` measures on: small random llamas of one architecture, and tasks on rows of real data."""

import json
import os
from pathlib import Path

import lm_eval
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fusion.merge import write
from fusion.modelref import Delta, Folder
from fusion.recipe import Recipe

SIZE = {
    "vocab_size": 32_000, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 8,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 2048,
}  # fmt: skip
WEIGHTS = (0.2, 0.4, 0.6, 0.8)
"""Of the first source in each merge."""

# name -> (lm-eval's file, the data's, the split that is scored, shots)
TASKS = {
    "arc_challenge": ("arc/arc_challenge.yaml", "arc_challenge", "test", 3),
    "openbookqa": ("openbookqa/openbookqa.yaml", "openbookqa", "test", 0),
    "piqa": ("piqa/piqa.yaml", "piqa", "validation", 0),
}


def data() -> Path:
    """The folder of real data. SystemExit where none is named."""
    folder = os.environ.get("FUSE_BENCH_DATA")
    if not folder:
        raise SystemExit("this benchmark needs real data: set FUSE_BENCH_DATA to its folder (commonsense/*.jsonl)")
    return Path(folder)


def write_tasks(folder: Path, items: int) -> dict[str, Path]:
    """Task files over the first rows of the data; few-shot examples are of the rows after them."""
    folder.mkdir(parents=True)
    found = {}
    for name, (source, rows, split, shots) in TASKS.items():
        lines = (data() / "commonsense" / f"{rows}.jsonl").read_text().splitlines(keepends=True)
        files = {split: lines[:items], "train": lines[-200:]}
        for part, chosen in files.items():
            (folder / f"{name}-{part}.jsonl").write_text("".join(chosen))
        other = {"test": "validation", "validation": "test"}[split]
        text = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / source),
            "task": f"bench_{name}",
            "tag": "bench",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {part: str(folder / f"{name}-{part}.jsonl") for part in files}},
            "training_split": "train",
            f"{other}_split": None,
            f"{split}_split": split,
            "num_fewshot": shots,
        }
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(json.dumps(text))
    return found


def write_models(folder: Path) -> dict[str, Path]:
    """Two random sources and their linear merges, by name."""
    sources = {name: folder / name for name in ("one", "two")}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE, initializer_range=0.05))
    for path in sources.values():
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(data() / "tokenizers" / "llama2").save_pretrained(path)
        # The second is kin to the first.
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.01)
    merged = {}
    for weight in WEIGHTS:
        recipe = Recipe("linear", ("one", "two"), None, (weight, 1 - weight), {}, 0, None)
        merged[f"merge{weight}"] = folder / f"merge{weight}"
        parents = tuple((name, Folder(str(path))) for name, path in sources.items())
        write(Delta(recipe, parents), merged[f"merge{weight}"])
    return sources | merged


def write_suite(path: Path, tasks: dict[str, Path], merges: int) -> Path:
    """A suite of the two sources and so many of their merges, on a group a task."""
    text = {
        "suite": path.stem,
        "models": {name: {"from": str(path.parent / name)} for name in ("one", "two")},
        "candidates": {
            f"merge{weight}": {"method": "linear", "models": {"one": weight, "two": 1 - weight}}
            for weight in WEIGHTS[:merges]
        },
        "evaluate": {name: {"tasks": [str(task)], "batch_size": 16} for name, task in tasks.items()},
        "track": {"mlflow": "off"},
    }
    path.write_text(json.dumps(text))
    return path
