"""The chat template of a merge: the donor's, or what the recipe asks for."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fusion.checkpoint import read_json
from fusion.errors import RecipeError

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
AUTO = "auto"


def chosen(wish: str, folders: Iterable[Path]) -> str | None:
    """The text of a template: `wish` itself, which is Jinja, or for "auto" what most of the models have.

    Of equally frequent ones the first model's; None where no model has one. Raises RecipeError for a name: no template
    is built in.
    """
    if wish == AUTO:
        found = [text for folder in folders if (text := read(folder)) is not None]
        counts = Counter(found)
        return max(found, key=lambda text: (counts[text], -found.index(text))) if found else None
    if "{" not in wish:
        raise RecipeError(f"chat_template: '{wish}' is no Jinja text, and none is built in; give the text, or auto")
    return wish


def read(folder: Path) -> str | None:
    """The template that a model's tokenizer has, as transformers finds it."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    if not (folder / CONFIG).is_file():
        return None
    text = read_json(folder / CONFIG).get("chat_template")
    if isinstance(text, list):
        text = next((one.get("template") for one in text if one.get("name") == "default"), None)
    return text if isinstance(text, str) else None


def write(text: str, folder: Path) -> None:
    """Make a template that of the tokenizer in a folder."""
    (folder / FILE).write_text(text, encoding="utf-8")
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        if config.pop("chat_template", None) is not None:
            (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
