"""Runs in mergekit's own virtual environment: merges one recipe a line of stdin, and answers on stdout.

One process for all recipes, because importing mergekit takes longer than merging a tiny model.
"""

import json
import sys
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        job = json.loads(line)
        try:
            text = Path(job["recipe"]).read_text()
            options = MergeOptions(
                random_seed=job["seed"], copy_tokenizer=job["tokenizer"], write_model_card=False, quiet=True
            )
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), job["out"], options, config_source=text)
            answer = {"error": None}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


main()
