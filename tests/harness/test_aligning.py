"""The report of `fuse-bench align`."""

import json
from pathlib import Path

import pytest
from tokenizers import normalizers

from fusion.errors import FusionError, TrainingError
from fusion.new_model import train_tokenizer
from fusion.vocabulary import read_tokenizer, read_vocabulary
from harness import aligning
from harness.aligning import align_report, align_words
from harness.errors import UsageError

TEXT = "the cat sat on the mat\n\nthe dog\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Three byte-level tokenizers: a coarse one, a fine one, and the fine one after all is written small."""
    at = tmp_path_factory.mktemp("tokenizers")
    for name, size in (("coarse", 273), ("fine", 262), ("small", 262)):
        tokenizer = train_tokenizer([TEXT] * 3, size)
        if name == "small":
            tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.save_pretrained(at / name)
    return {name: at / name for name in ("coarse", "fine", "small")}


def report(folders, tmp_path, text: str | None, source="coarse", target="fine", how="bytes", **more) -> dict:
    path = None
    if text is not None:
        path = tmp_path / more.pop("name", "text.txt")
        path.write_text(text)
    return align_report(folders[source], folders[target], path, how, more.get("compat"), more.get("map_file"))


def test_the_vocabularies_alone(folders, tmp_path) -> None:
    found = report(folders, tmp_path, None)
    coarse, fine = (set(read_vocabulary(read_tokenizer(folders[name])).tokens) for name in ("coarse", "fine"))
    wanted = (len(coarse & fine) + 1) / (len(coarse) + 1)  # EOS and pad are both None
    assert found["vocabulary"]["exact"] == pytest.approx(wanted) and found["vocabulary"]["approximate"] == 0
    assert sum(found["vocabulary"].values()) == pytest.approx(1)
    assert not {"used", "positions", "aligned", "most_used", "seconds_per_1k_tokens"} & set(found)
    assert found["warnings"] == [] and found["tokens"] == {"source": 273, "target": 262}


def test_the_shares_of_a_text_are_those_counted_by_hand(folders, tmp_path) -> None:
    text = "the cat"
    found = report(folders, tmp_path, text)
    tokenizers = {name: read_tokenizer(folders[name]) for name in ("coarse", "fine")}
    cuts = {
        name: [*tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)] for name, tokenizer in tokenizers.items()
    }
    ends = {name: ["".join(cut[:n]) for n in range(len(cut) + 1)] for name, cut in cuts.items()}
    fine = [*cuts["fine"], "EOS"]
    at = {before: token for before, token in zip(ends["coarse"], [*cuts["coarse"], "EOS"], strict=True)}
    same = [at.get(before) == token for before, token in zip(ends["fine"], fine, strict=True)][1:]
    shared = [before in at for before in ends["fine"]][1:]
    assert found["positions"] == len(fine) - 1 and found["documents"] == 1
    assert found["aligned"] == pytest.approx(sum(same) / len(same)) and 0 < found["aligned"] < 1
    assert found["boundary"] == pytest.approx(sum(shared) / len(shared))
    assert found["fallback"] == pytest.approx(1 - found["aligned"])
    known = sum(token in tokenizers["fine"].get_vocab() for token in cuts["coarse"]) + 1
    assert found["used"]["exact"] == pytest.approx(known / (len(cuts["coarse"]) + 1))
    assert found["seconds_per_1k_tokens"] > 0


def test_a_tokenizer_beside_itself_is_aligned_everywhere(folders, tmp_path) -> None:
    for how in ("bytes", "exact", "min_ed"):
        found = report(folders, tmp_path, TEXT, "fine", "fine", how)
        assert found["aligned"] == found["boundary"] == found["used"]["exact"] == 1 and found["fallback"] == 0
        assert found["most_used"] == {"approximate": [], "unmapped": []}


def test_what_is_most_used_comes_first(folders, tmp_path) -> None:
    text = "the the the cat cat"
    found = report(folders, tmp_path, text)
    counts = [entry["count"] for entry in found["most_used"]["unmapped"]]
    assert counts == sorted(counts, reverse=True) and counts
    nearest = report(folders, tmp_path, text, how="min_ed")
    assert nearest["most_used"]["unmapped"] == [] and nearest["used"]["unmapped"] == 0
    assert [entry["token"] for entry in nearest["most_used"]["approximate"]] == [
        entry["token"] for entry in found["most_used"]["unmapped"]
    ]
    assert all(entry["image"] for entry in nearest["most_used"]["approximate"])


def test_documents_are_lines_or_stretches_between_blank_lines(folders, tmp_path, monkeypatch) -> None:
    rows = "\n".join(json.dumps({"text": text}) for text in ("the cat", "the dog\n\nsat"))
    assert report(folders, tmp_path, rows, name="text.jsonl")["documents"] == 2
    assert report(folders, tmp_path, TEXT)["documents"] == 1
    monkeypatch.setattr(aligning, "LONGEST", 10)
    text = "a\n\nb\n \nc\n\n\nlonger than ten\n\n  \n\nend\n"
    assert list(aligning._stretches(text)) == ["a\n\nb\n \nc", "longer tha", "n ten", "end"]
    assert list(aligning._stretches("x\r\n\r\n" + "y" * 8)) == ["x", "y" * 8]


def test_documents_that_are_not_given_back_are_counted_and_aligned_nowhere_by_bytes(folders, tmp_path) -> None:
    rows = "\n".join(json.dumps({"text": text}) for text in ("the cat", "The Cat"))
    found = report(folders, tmp_path, rows, "small", "fine", name="text.jsonl")
    assert found["unreadable"]["source"] == 1 and found["unreadable"]["target"] == 0
    assert "at byte 0: 'The Cat' became 'the cat'" in found["unreadable"]["reason"]
    whole = report(folders, tmp_path, json.dumps({"text": "the cat"}), "small", "fine", name="text.jsonl")
    assert "reason" not in whole["unreadable"]
    assert found["aligned"] * found["positions"] == pytest.approx(whole["aligned"] * whole["positions"])
    assert "unreadable  1 documents by the source" in align_words(found)


def test_the_map_file_is_the_whole_map(folders, tmp_path) -> None:
    report(folders, tmp_path, None, map_file=tmp_path / "map.json")
    written = json.loads((tmp_path / "map.json").read_text())
    coarse, fine = (read_vocabulary(read_tokenizer(folders[name])) for name in ("coarse", "fine"))
    assert list(written) == [str(i) for i in range(273)]
    for i, image in written.items():
        token = coarse.tokens[int(i)]
        if token is not None:
            assert (fine.tokens[image] == token) if image is not None else (token not in fine.tokens)
    assert [file.name for file in tmp_path.iterdir()] == ["map.json"]


def test_words_fit_80_columns_and_name_the_defect(folders, tmp_path) -> None:
    found = report(folders, tmp_path, TEXT, how="min_ed", compat="fusellm-v1")
    words = align_words(found)
    assert max(map(len, words.splitlines())) <= 80 or str(tmp_path.parent) in words
    assert "known defect" in " ".join(words.split()) and "\u00a0" not in words
    assert "known defect" not in align_words(report(folders, tmp_path, TEXT, how="min_ed"))
    assert "positions" not in align_words(report(folders, tmp_path, None))


def test_little_in_common_is_a_warning(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(aligning, "MUCH_UNMAPPED", 0.05)
    monkeypatch.setattr(aligning, "LITTLE_ALIGNED", 0.95)
    unmapped, aligned = report(folders, tmp_path, TEXT)["warnings"]
    assert "of the source's tokens in the text have none of the target's" in unmapped
    assert aligned.startswith("only ") and "positions are aligned" in aligned


def test_what_cannot_be_done_says_why(folders, tmp_path) -> None:
    with pytest.raises(FusionError, match="no such file or folder"):
        align_report(tmp_path / "none", folders["fine"], None, "bytes", None, None)
    with pytest.raises(FusionError, match="min_ed or exact"):
        report(folders, tmp_path, None, compat="fusellm-v1")
    for text in ("", " \n\n"):
        with pytest.raises(UsageError, match="holds no text"):
            report(folders, tmp_path, text)
    with pytest.raises(UsageError, match="cannot be read"):
        align_report(folders["fine"], folders["fine"], tmp_path / "none.txt", "bytes", None, None)
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match="is not UTF-8 \\(byte 2\\)"):
        align_report(folders["fine"], folders["fine"], tmp_path / "bad.txt", "bytes", None, None)
    with pytest.raises(TrainingError):
        report(folders, tmp_path, "{", name="bad.jsonl")
    for bad in (tmp_path, tmp_path / "none" / "map.json"):
        with pytest.raises(UsageError, match="not a file in a folder that is there"):
            report(folders, tmp_path, None, map_file=bad)
