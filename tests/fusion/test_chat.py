import json
from pathlib import Path

import pytest

from fusion.chat import CONFIG, FILE, chosen, read, write
from fusion.errors import RecipeError
from fusion.merge import write as write_model
from fusion.modelref import Delta, Folder
from fusion.recipe import Recipe
from tests.fusion.models import save_llama, tiny_llama


def folder(path: Path, template: str | None, inside: bool = False) -> Path:
    path.mkdir()
    config = {"chat_template": template} if inside and template else {}
    (path / CONFIG).write_text(json.dumps(config))
    if template and not inside:
        (path / FILE).write_text(template)
    return path


def test_auto_is_what_most_models_have_and_the_first_of_equals(tmp_path: Path) -> None:
    folders = [folder(tmp_path / name, text) for name, text in (("a", "{{a}}"), ("b", "{{b}}"), ("c", None))]
    assert chosen("auto", folders) == "{{a}}"
    folders.append(folder(tmp_path / "d", "{{b}}", inside=True))
    assert chosen("auto", folders) == "{{b}}"
    assert chosen("auto", [tmp_path / "c"]) is None


def test_text_is_taken_as_it_is_and_a_name_is_refused() -> None:
    assert chosen("{{ x }}", []) == "{{ x }}"
    with pytest.raises(RecipeError, match="'chatml' is no Jinja text"):
        chosen("chatml", [])


def test_a_template_replaces_the_one_in_the_config(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", "{{old}}", inside=True)
    write("{{new}}", path)
    assert read(path) == "{{new}}"
    assert "chat_template" not in json.loads((path / CONFIG).read_text())


def test_a_merge_has_the_template_that_its_recipe_asks_for(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for seed, name in enumerate(("a", "b")):
        save_llama(tmp_path / name, tiny_llama(seed))
    text = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    recipe = Recipe("linear", ("a", "b"), None, None, {}, chat_template=text)
    write_model(Delta(recipe, tuple((n, Folder(str(tmp_path / n))) for n in ("a", "b"))), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<hi>"
