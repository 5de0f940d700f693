"""Small vocabularies in the formats that the papers released, and the ids that the reference gives texts with them.

    python tests/make_tokenizer_goldens.py tests/golden/tokenizers

writes one JSON file for each of SYSTEMS; this needs transformers. The tests write the same vocabularies.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

WORDS = "the then there quick fox can could hello world token tokens ing number 12 123 2024 of naïve café 学 😀".split()
ENGLISH = "The THE Hello"
BERT_SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~…—")
TEXTS = [
    "",
    " ",
    "hello world",
    "The quick fox, THE Quick FOX.",
    "  two  spaces   three ",
    "tabs\tand\nnew\r\nlines\n\n\nend\n",
    "I can't, you'll, we've, 'tis, CAN'T, it's 'd",
    "12 123 2024 1234567890 3.14 1,000",
    "naïve café Ångström ÀÉÎ e\u0301 o\u0308\u0304",
    "学习 中文字 東京 한국어 日本語のテキスト",
    "😀😀 👩‍👩‍👧 🏽 ❤️ ok",
    "ℝ ﬁve ½ ™ ™token ＡＢＣ",
    "control\u0000\u0007\u200b\u00adchars \u00a0\u2003\u3000wide \ufffd \ufeff",
    "a" * 100 + " " + "a" * 101 + " " + "the" * 40,
    "tokens tokening-tokens tokenstokens",
    "[CLS] hello [MASK] world[SEP] [mask] [PAD][UNK] [unused0]",
    "hello <mask> world<mask>the <s>fox</s><pad> <unk> the<unk>fox",
    "hello<|endoftext|> world <|ENDOFTEXT|> <|endoftext|",
    "the madeupword0000 Ġthe ▁the ##the the</w> <extra_id_0>",
    "if x<=y: return {'a': [1, 2]}  # done",
    "ends with a space ",
    "\n",
    "new token <new> NEW <New>hello plainword plainwords [NEW] [new] PLAINWORD",
]
PAIRS = [("hello world", "the fox"), ("", "the"), ("<mask> the", "can't")]


def spelled(text: str) -> str:
    """Return the byte-level spelling of a text: Ġ for a space and so on."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)


def left_to_right(words: Iterable[list[str]]) -> list[tuple[str, str]]:
    """Return merges that join the symbols of each word from left to right, each merge once."""
    merges: dict[tuple[str, str], None] = {}
    for symbols in words:
        for place in range(1, len(symbols)):
            merges["".join(symbols[:place]), symbols[place]] = None
    return list(merges)


def write_bpe(vocabulary: Path, merges: Path, tokens: list[str], pairs: list[tuple[str, str]]) -> None:
    ids = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    vocabulary.write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    merges.write_text("\n".join(lines) + "\n", encoding="utf-8")


def gpt_pieces() -> tuple[list[str], list[tuple[str, str]]]:
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789学▁") + PUNCTUATION
    words = [word for word in WORDS if word.isascii()]
    pairs = left_to_right([*word[:-1], word[-1] + "</w>"] for word in [*words, "don", "...", "aaaa"])
    pairs += left_to_right(list(word) for word in ("token", "the", "aa"))
    return ["<unk>", *letters, *(letter + "</w>" for letter in letters), *map("".join, pairs), "\n</w>"], pairs


def gpt2_pieces() -> tuple[list[str], list[tuple[str, str]]]:
    words = [*(f" {word}" for word in [*WORDS, *ENGLISH.split()]), *WORDS, *ENGLISH.split(), "'t", "'ll", "##"]
    words += ["  ", "\n\n"]
    pairs = left_to_right(list(spelled(word)) for word in words)
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs), "<|endoftext|>"], pairs


def write_gpt(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> None:
    write_bpe(folder / names[0], folder / names[1], *gpt_pieces())


def write_gpt2(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> None:
    write_bpe(folder / names[0], folder / names[1], *gpt2_pieces())


def bart_order() -> list[int]:
    """Return GPT-2's ids as a dictionary orders them by frequency: here, any other order."""
    numbers = list(range(len(dict.fromkeys(gpt2_pieces()[0]))))
    return [*numbers[:-1][::-1], numbers[-1]]


def write_bart(folder: Path) -> None:
    tokens, pairs = gpt2_pieces()
    tokens = list(dict.fromkeys(tokens))
    ordered = [tokens[number] for number in bart_order()]
    fillers = ["madeupword0000", "madeupword0001"]
    ordered = ["<s>", "<pad>", "</s>", "<unk>", *ordered, *fillers, "<mask>"]
    write_bpe(folder / "vocab.json", folder / "merges.txt", ordered, pairs)


def write_fairseq_bart(folder: Path) -> None:
    """Write the vocabulary of `write_bart` as fairseq does: GPT-2's files, and their ids in another order."""
    write_gpt2(folder, ("encoder.json", "vocab.bpe"))
    lines = [f"{number} {1000 - place}" for place, number in enumerate(bart_order())]
    (folder / "dict.txt").write_text("\n".join([*lines, "madeupword0000 0", "madeupword0001 0", ""]), encoding="utf-8")


def write_bert(folder: Path, cased: bool = False) -> None:
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789éℝ") + list("ABCDEFGH") * cased
    words = [*WORDS, "don", "cafe", "naive", "##s", "##ing", "##ening", "##the", "ok", *ENGLISH.split() * cased]
    tokens = [*BERT_SPECIAL, *PUNCTUATION, *letters, *(f"##{letter}" for letter in letters), "習", "文", "東", *words]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")


def write_added(folder: Path) -> None:
    """Write Hugging Face's files for three tokens added to the vocabulary in a folder, one of them special."""
    if (folder / "vocab.txt").exists():
        size = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    else:
        size = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    added = {"plainword": size, "<new>": size + 1, "[NEW]": size + 2}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    named = {"extra_special_tokens": ["<new>"], "sep_token": "[SEP]"}  # the last without an id where it is not BERT
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")


def write_settings(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_bert_by_settings(folder: Path) -> None:
    write_bert(folder)
    write_settings(folder, do_lower_case=True, strip_accents=False, tokenize_chinese_chars=False)


def write_bert_cased(folder: Path) -> None:
    write_bert(folder, cased=True)
    write_settings(folder, do_lower_case=False)  # the reference lowers case unless told; ours sees it


def write_bert_added(folder: Path) -> None:
    write_bert(folder)
    write_added(folder)


def write_gpt2_added(folder: Path) -> None:
    write_gpt2(folder)
    write_added(folder)


SYSTEMS = {
    "gpt": write_gpt,
    "gpt2": write_gpt2,
    "gpt2_added": write_gpt2_added,
    "bert": write_bert,
    "bert_added": write_bert_added,
    "bert_by_settings": write_bert_by_settings,
    "bert_cased": write_bert_cased,
    "bart": write_bart,
}


def reference(system: str, folder: Path) -> Any:
    import transformers

    kinds = {"gpt": "OpenAIGPT", "gpt2": "GPT2", "bert": "Bert", "bart": "Bart"}
    kind = getattr(transformers, f"{kinds[system.split('_')[0]]}Tokenizer")
    # The released BART says so in its own files.
    mask = {"mask_token": transformers.AddedToken("<mask>", lstrip=True, special=True)} if system == "bart" else {}
    return kind.from_pretrained(folder, **mask)


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for system, write in SYSTEMS.items():
        with tempfile.TemporaryDirectory() as name:
            write(Path(name))
            tokenizer = reference(system, Path(name))
        backend = tokenizer.backend_tokenizer
        texts = []
        for text in TEXTS:
            ids = backend.encode(text).ids
            decoded = backend.decode(ids, skip_special_tokens=False)
            texts.append(
                {
                    "text": text,
                    "ids": ids,
                    "plain": backend.encode(text, add_special_tokens=False).ids,
                    "decoded": decoded,
                }
            )
        pairs = [(encoding.ids, encoding.type_ids) for encoding in backend.encode_batch(PAIRS)]
        found = {"size": len(tokenizer), "texts": texts, "pairs": pairs}
        content = json.dumps(found, ensure_ascii=True, separators=(",", ":")).replace('{"text"', '\n{"text"')
        (target / f"{system}.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
