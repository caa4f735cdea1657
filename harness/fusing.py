"""The verb `fuse`: one fusion, or any other training of the table BUILDERS, from a recipe file.

    method: fusellm
    target: ./base                  # folders, relative to the recipe's own; FOLDER+LORA; or a LoRA folder
    teachers: [./mpt, ./neox]
    corpus: text.jsonl              # {"text": ...} or {"prompt": ..., "answer": ...}, one a line
    lambda: 0.9                     # the method's parameters; `fuse-bench methods` lists them
    seed: 17

A control is a recipe of its own: `method: clm` with the same target, corpus, parameters and seed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from fusion import teachers
from fusion.builders import BUILDERS
from fusion.builders.builder import Builder, Work
from fusion.digests import folder_digests
from fusion.jsonl import Joined, read_jsonl
from fusion.merge import make_room
from fusion.methods import METHODS
from fusion.modelref import Delta, ModelRef
from fusion.params import build as make_params
from fusion.params import did_you_mean, fill
from fusion.recipe import Recipe
from fusion.recipe_yaml import Models
from harness.board import clipped
from harness.build import folder_of
from harness.problems import Problems
from harness.store import digest_of, file_digest
from harness.yamlfile import Document

SETTINGS = ("method", "seed")
LIBRARIES = ("fuse-bench", "torch", "transformers", "tokenizers")

Progress = Callable[[str, int, int], None]  # (what is being done, done, total)


@dataclass(frozen=True)
class Fusion:
    """A checked recipe: `models` by role ("target", "teacher.0", ...), `corpora` as absolute paths."""

    builder: Builder
    params: Mapping[str, Any]
    models: Mapping[str, ModelRef]
    names: Mapping[str, str]
    corpora: tuple[Path, ...]
    seed: int


def read_fusion(path: Path, seed: int | None = None) -> Fusion:
    """Read and check a recipe. Raises SuiteError with every problem of the file, each at its line and column."""
    document = Document(path)
    reader = _Reader(document.data, path.parent)
    found = reader.read(seed)
    if found is None or reader.problems.found:
        raise document.error(reader.problems.found)
    return found


def fuse_recipe(path: Path, out: Path, cache: Path, seed: int | None, progress: Progress) -> dict[str, Any] | None:
    """Fuse as a recipe file says, into the new folder `out`. Returns {"out", "digest", and the training's report}.

    What the teachers say of a corpus stays in `cache` for other fusions of theirs; so do the checkpoints of a training
    that is interrupted, until the same command has finished it. Of several processes that train together (torchrun,
    accelerate launch) the first reads and writes, and the others return None.
    """
    rank = int(os.environ.get("RANK", "0"))
    transformers.utils.logging.disable_progress_bar()
    fusion = read_fusion(path, seed)
    make_room(out)
    params = make_params(fusion.builder.Params, fusion.params)
    texts = [file_digest(corpus) for corpus in fusion.corpora]
    documents = Joined([read_jsonl(corpus) for corpus in fusion.corpora])
    what = [fusion.builder.name, fusion.builder.version, fusion.params, texts, fusion.seed]
    kept = cache / "fusions" / _short(digest_of([*what, repr(fusion.models)]))
    with _alone(kept) if rank == 0 else contextlib.nullcontext():
        return _fuse(fusion, params, (documents, texts), kept, out, cache / "teachers", rank, progress)


def _fuse(
    fusion: Fusion,
    params: Any,
    text: tuple[Joined, list[str]],
    kept: Path,
    out: Path,
    cache: Path,
    rank: int,
    progress: Progress,
) -> dict[str, Any] | None:
    builder, (documents, texts) = fusion.builder, text
    folders = {role: folder_of(ref, kept / str(rank) / role) for role, ref in fusion.models.items()}
    digests = {role: folder_digests(folder)["model"] for role, folder in folders.items()}
    # What a killed training left belongs to these very weights, which the paths do not tell.
    scratch = kept / _short(digest_of(digests))
    stores = []
    for together in builder.readings(params, len(folders) - 1):
        names = " + ".join(fusion.names[role] for role in together)
        # On a GPU a model is read in its own dtype.
        how = [teachers.FORMAT, torch.cuda.is_available(), params.top_k]
        store = digest_of([[digests[role] for role in together], texts, how])
        stores.append(cache / _short(store))
        models = [folders[role] for role in together]
        if rank == 0:
            with _alone(stores[-1]):
                say = _named(progress, f"reading with {names}")
                teachers.write_store(models, documents, params.top_k, stores[-1], say)
        while rank > 0 and not teachers.finished(stores[-1]):
            time.sleep(1)
    work = Work(
        params=params,
        target=folders["target"],
        teachers=tuple(folder for role, folder in folders.items() if role != "target"),
        documents=documents,
        stores=tuple(stores),
        seed=fusion.seed,
        out=scratch / "model",
        scratch=scratch,
        progress=_named(progress, "training"),
    )
    report = builder.run(work)
    if rank > 0:
        return None
    found = {
        "out": str(out),
        "digest": folder_digests(work.out)["model"],
        "method": builder.name,
        "params": dict(fusion.params),
        "seed": fusion.seed,
        "models": {role: {"name": fusion.names[role], "digest": digest} for role, digest in digests.items()},
        "corpora": [{"name": str(c), "digest": digest} for c, digest in zip(fusion.corpora, texts, strict=True)],
        "versions": {name: version(name) for name in LIBRARIES},
        **report,
    }
    (work.out / "README.md").write_text(card(builder, found), encoding="utf-8")
    _move(work.out, out)
    shutil.rmtree(kept)
    return found


def fused_words(found: Mapping[str, Any]) -> str:
    """What a fusion came to, in a few lines."""
    lines = [f"{found['out']}: {found['steps']} steps, {found['tokens']} tokens, loss {found['loss']:.3f}"]
    about = found.get("alignment")
    if about is not None:
        lines.append(f"  taught by a source: {about['aligned']:.1%} of {about['positions']} tokens")
        for role, source in about["sources"].items():
            name = found["models"].get(role, {"name": "the teachers together"})["name"]
            # Where nothing but ends of texts is predicted there are no bytes.
            bits = f"{source['bits_per_byte']:.3f} bits per byte, " if "bits_per_byte" in source else ""
            lines.append(f"  {bits}taught {source.get('weight_of_positions', 0):6.1%}: {clipped(name, 40, 2)}")
        lines += [f"  warning: {warning}" for warning in about.get("warnings", ())]
    return "\n".join([*lines, f"  {found['digest']}"])


def card(builder: Builder, found: Mapping[str, Any]) -> str:
    """The model card in markdown, with the front matter that the Hugging Face hub reads."""
    lines = ["---", "library_name: transformers", "tags:", "- fuse-bench", "---", "", "# A fused model", ""]
    lines += [f"Made by fuse-bench {found['versions']['fuse-bench']} with `{builder.name}`: {builder.formula}", ""]
    lines += [f"Source of the method: {builder.paper}.", "", "| part | model | SHA-256 |", "| --- | --- | --- |"]
    lines += [f"| {role} | `{m['name']}` | `{m['digest']}` |" for role, m in found["models"].items()]
    lines += [f"| corpus | `{Path(c['name']).name}` | `{c['digest']}` |" for c in found["corpora"]]
    settled = {key: found[key] for key in ("method", "params", "seed", "steps", "tokens", "versions")}
    lines += ["", "## Recipe", "", "```json", json.dumps(settled, indent=1, ensure_ascii=False), "```"]
    if "alignment" in found:
        lines += ["", "## Alignment", "", "```json", json.dumps(found["alignment"], indent=1), "```"]
    return "\n".join(lines) + "\n"


class _Reader:
    """Walks a recipe once and notes every problem."""

    def __init__(self, data: Any, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.problems = Problems()
        self.models = Models(folder)

    def read(self, seed: int | None) -> Fusion | None:
        """The recipe; None, or one that is not to be used, where there are problems."""
        method = self.data.get("method") if isinstance(self.data, dict) else None
        if not isinstance(method, str) or method not in BUILDERS:
            at = ("method",) if method is not None else ()
            self.problems.add(at, f"unknown method {method!r}", did_you_mean(str(method), BUILDERS))
            return None
        builder = BUILDERS[method]
        roles = {role.name for role in builder.roles}
        chosen = self.data.get("seed", 0) if seed is None else seed
        if type(chosen) is not int or chosen < 0:
            self.problems.add(("seed",), f"'seed' is {chosen!r}; expected a whole number from 0")
        refs: dict[str, str] = {}
        corpora: list[Path] = []
        for role in builder.roles:
            given = self.data.get(role.name)
            if given is None:
                if role.default is None:
                    self.problems.add((), f"{method} needs `{role.name}:`")
            elif role.kind == "corpus":
                corpora += self._corpora(role.name, given, role.many)
            else:
                refs |= self._models(role.name, given, role.many)
        self.problems.found += self.models.problems
        own = {key: value for key, value in self.data.items() if key not in (*roles, *SETTINGS)}
        params = self.problems.training((), builder, own, sum(role != "target" for role in refs), self.folder)
        if self.problems.found:
            return None
        models = {role: self.models.refs[name] for role, name in refs.items()}
        names = dict(refs)
        if "target" not in models:
            models = {"target": self._mean(refs), **models}
            names["target"] = "the mean of the teachers"
        return Fusion(builder, params, models, names, tuple(corpora), chosen)

    def _models(self, role: str, given: Any, many: bool) -> dict[str, str]:
        """Models by the part that each plays."""
        if many and not (isinstance(given, list) and given):
            self.problems.add((role,), f"'{role}' is a list of models")
            return {}
        listed = [((role, i), one) for i, one in enumerate(given)] if many else [((role,), given)]
        found = {}
        for i, (at, one) in enumerate(listed):
            name = self.models.name(one, at)
            if name is not None:
                found[f"teacher.{i}" if many else role] = name
        return found

    def _corpora(self, role: str, given: Any, many: bool) -> list[Path]:
        if many and not (isinstance(given, list) and given):
            self.problems.add((role,), f"'{role}' is a list of .jsonl files")
            return []
        found = []
        for i, one in enumerate(given if many else [given]):
            path = (self.folder / str(one)).expanduser().absolute()
            if not path.is_file():
                self.problems.add(
                    (role, i) if many else (role,), f"there is no file {path}", "a corpus is a .jsonl file"
                )
            found.append(path)
        return found

    def _mean(self, refs: Mapping[str, str]) -> Delta:
        """The parameter mean of the teachers."""
        names = tuple(dict.fromkeys(refs.values()))
        recipe = Recipe("linear", names, None, None, fill(METHODS["linear"].Params, {})[0])
        return Delta(recipe, tuple((name, self.models.refs[name]) for name in names))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder that other commands may want to write, too; waits for whoever holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:32]


def _move(made: Path, out: Path) -> None:
    """Put a finished folder where it was asked for, which may be another disk."""
    if out.is_dir():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.move(made, partial)
    partial.rename(out)
