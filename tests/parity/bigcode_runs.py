"""Runs in bigcode's environment: its own verdicts on programs, as JSON. They are run as it runs them: not isolated.

{"language": "python", "pairs": [[program, tests]], "timeout"} or {"language": "js", "programs": [text]}
-> for each whether bigcode counts it as passed, and what it says of it.
"""

import json
import os
import sys
import tempfile


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    request = json.load(sys.stdin)
    # bigcode reads the results of all runs that ever wrote to the folder for temporary files.
    with tempfile.TemporaryDirectory(prefix="bigcode-") as folder:
        tempfile.tempdir = folder
        json.dump(_python(request) if request["language"] == "python" else _multiple(request), out)
    out.close()


def _python(request: dict) -> list:
    from bigcode_eval.tasks.custom_metrics.code_eval import compute_code_eval

    programs, tests = zip(*request["pairs"], strict=True)
    _, results = compute_code_eval([[p] for p in programs], tests, k=[1], num_workers=2, timeout=request["timeout"])
    return [[results[i][0][1]["passed"], results[i][0][1]["result"]] for i in range(len(programs))]


def _multiple(request: dict) -> list:
    from bigcode_eval.tasks.custom_metrics.multiple_metrics.containerized_eval import eval_string_script

    found = [eval_string_script(request["language"], program) for program in request["programs"]]
    return [[one["status"] == "OK" and one["exit_code"] == 0, one["status"] + " " + one["stderr"]] for one in found]


if __name__ == "__main__":
    main()
