"""A package of the shape of bigcode's harness, with a few small tasks, in an environment as `bigcode.install` makes."""

import subprocess
import sys
from pathlib import Path

from harness import bigcode

BASE = """
class Task:
    def __init__(self, stop_words=None, requires_execution=True):
        self.stop_words, self.requires_execution = stop_words, requires_execution
        try:
            self.dataset = load_dataset(path=self.DATASET_PATH)
        except Exception as e:
            import warnings
            warnings.warn(f"Loading the dataset failed with {e}. This task will use something local")

    def get_dataset(self):
        return self.dataset["test"]

    def get_prompt(self, doc):
        return doc["prompt"]

    def get_reference(self, doc):
        return "\\n" + doc["test"] + f"\\ncheck({doc['entry_point']})"

    def postprocess_generation(self, generation, idx):
        prompt = self.get_prompt(self.get_dataset()[idx])
        return prompt + generation[len(prompt):].split("\\nSTOP")[0]


def load_dataset(path=None, name=None):
    raise ConnectionError("no hub")
"""
RUNS = """
def compute_code_eval(predictions, references, k=[1, 10, 100], num_workers=4, timeout=3.0):
    raise AssertionError("a program was to run in bigcode's environment")
"""
TASKS = {
    "humaneval": """
from bigcode_eval.base import Task
from bigcode_eval.tasks.code_eval import compute_code_eval

class HumanEval(Task):
    DATASET_PATH = "openai_humaneval"

    def __init__(self):
        super().__init__(["\\nSTOP"], True)

    def process_results(self, generations, references):
        results, _ = compute_code_eval(references=references, predictions=generations, timeout=7.0)
        return results

class Sneaky(HumanEval):
    def process_results(self, generations, references):
        import subprocess
        subprocess.run(["true"])

class Instructed(HumanEval):
    def get_prompt(self, doc):
        return {"instruction": "Write: ", "context": doc["prompt"]}

    def postprocess_generation(self, generation, idx):
        return self.get_dataset()["prompt"][idx] + generation
""",
    "unknown": """
from bigcode_eval.base import Task

class Unknown(Task):
    DATASET_PATH = "x"

    def process_results(self, generations, references):
        exec(generations[0][0] + references[0])
""",
    "multiple": """
from bigcode_eval.base import Task, load_dataset

class MultiPLE(Task):
    DATASET_PATH = "nuprl/MultiPL-E"

    def __init__(self):
        self.dataset = load_dataset("nuprl/MultiPL-E", "humaneval-sh", revision="0" * 40)
        super().__init__(self.dataset["test"][0]["stop_tokens"] + ["<file_sep>"])

    def get_reference(self, doc):
        return doc["tests"]

    def process_results(self, generations, references):
        raise AssertionError
""",
    "python_bugs": """
from bigcode_eval.base import Task

class PythonBugs(Task):
    DATASET_PATH = "bugs"

    def get_dataset(self):
        return self.dataset["train"]

    def get_reference(self, doc):
        return doc["correct_code"]

    def process_results(self, generations, references):
        return {"js": 0.0, "mean exact match": float(generations[0][0] == references[0])}
""",
}
REGISTRY = """
from . import humaneval, multiple, python_bugs, unknown

print("what a library prints is no answer")
TASK_REGISTRY = {
    "humaneval": humaneval.HumanEval, "instruct-humaneval": humaneval.Instructed, "sneaky": humaneval.Sneaky,
    "multiple-sh": multiple.MultiPLE, "multiple-jl": multiple.MultiPLE,
    "python_bugs": python_bugs.PythonBugs, "unknown": unknown.Unknown,
}
ALL_TASKS = sorted(TASK_REGISTRY)

def get_task(name, args):
    return TASK_REGISTRY[name]()
"""


def install(venv: Path) -> None:
    """Make the environment, with the fake in the place of the real one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = (venv / "lib").glob("python*/site-packages")
    about = packages / "nvidia_bigcode_eval-26.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-bigcode-eval\nVersion: 26.3\n")
    tasks = packages / "bigcode_eval" / "tasks"
    tasks.mkdir(parents=True)
    for name, text in {**TASKS, "code_eval": RUNS, "__init__": REGISTRY}.items():
        (tasks / f"{name}.py").write_text(text)
    (tasks.parent / "__init__.py").touch()
    (tasks.parent / "base.py").write_text(BASE)
    (venv / "installed").write_text(bigcode._stamp())
