"""The tokenizers that GPT, GPT-2, BERT and BART were released with, from their own files or Hugging Face's.

Each function returns the backend that Hugging Face's fast tokenizer of the same system has: equal ids for equal text.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxformer.errors import UserError
from jaxformer.tokenizers.files import Companions, companions, read_ids, read_lines, read_merges, special_token
from jaxformer.tokenizers.templates import bart_template, bert_template

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BART = ("<s>", "<pad>", "</s>", "<unk>")
# What fairseq fills a dictionary up with to a multiple of eight.
_FILLER = re.compile(r"madeupword\d+")


def gpt(vocabulary_file: Path, merges_file: Path) -> hf.Tokenizer:
    """Read GPT's BPE (section 4.1): lower-case words without accents, cut as BERT cuts, `</w>` at the end of each.

    The only special token is `<unk>`. OpenAI's own code prepared text otherwise, and so may give other ids: ftfy mends
    the encoding, dashes and runs of punctuation are spelled out and spaced, ends of lines stay as the token `\\n</w>`,
    accents stay, and spaCy cuts words ("don't" into "do" and "n't", where BERT's rule gives "don", "'" and "t").
    """
    vocabulary, beside = read_ids(vocabulary_file), companions(vocabulary_file.parent)
    _demand(vocabulary, ("<unk>",), vocabulary_file, "GPT")
    merges = read_merges(merges_file, vocabulary)
    ids = beside.place(vocabulary, vocabulary_file)
    tokenizer = hf.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=False))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return beside.finish(tokenizer, _special("<unk>"), ids)


def gpt2(vocabulary_file: Path, merges_file: Path) -> hf.Tokenizer:
    """Read GPT-2's byte-level BPE (section 2.2), which GPT-3 shares. `<|endoftext|>` is its only special token."""
    vocabulary, beside = read_ids(vocabulary_file), companions(vocabulary_file.parent)
    merges = read_merges(merges_file, vocabulary)
    ids = beside.place(vocabulary, vocabulary_file)
    special = _special("<|endoftext|>") if "<|endoftext|>" in ids else {}
    tokenizer = beside.finish(_byte_level(ids, merges, beside), special, ids)
    if special and beside.setting("add_bos_token", bool, False):
        begins = ("<|endoftext|>", ids["<|endoftext|>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B", special_tokens=[begins]
        )
    return tokenizer


def bart(vocabulary_file: Path, merges_file: Path) -> hf.Tokenizer:
    """Read BART's tokenizer as Hugging Face keeps it, RoBERTa's: GPT-2's pieces by other ids, `<s>` to `<mask>`."""
    vocabulary = read_ids(vocabulary_file)
    _demand(vocabulary, (*_BART, "<mask>"), vocabulary_file, "BART")
    return _bart(vocabulary, read_merges(merges_file, vocabulary), vocabulary_file)


def fairseq_bart(dictionary: Path, encoder: Path, merges_file: Path) -> hf.Tokenizer:
    """Read BART's tokenizer as fairseq keeps it: GPT-2's files, and a `dict.txt` that orders GPT-2's ids by frequency.

    A line of `dict.txt` is "ID COUNT". Ids 0 to 3 are `<s>`, `<pad>`, `</s>` and `<unk>`, then the lines follow in
    order, and `<mask>` is last. The released file has 50,257 ids of GPT-2, `<|endoftext|>` last and no special token
    here, and three fillers: 4 + 50,257 + 3 + 1 = 50,265. Hugging Face's vocab.json of BART keeps the fillers too, as
    the tokens madeupword0000 to madeupword0002 with ids 50261 to 50263, and `<mask>` at 50264. So the ids are equal.
    """
    pieces = {number: token for token, number in read_ids(encoder).items()}
    tokens = list(_BART)
    for number, line in enumerate(read_lines(dictionary), start=1):
        word, _, count = line.rstrip().rpartition(" ")
        if not count.isdecimal() or not (word.isdecimal() or word == "<mask>" or _FILLER.fullmatch(word)):
            raise UserError(f"{dictionary}, line {number}: {line!r} is not a GPT-2 id and a count; use BART's dict.txt")
        if word.isdecimal() and int(word) not in pieces:
            raise UserError(f"{dictionary}, line {number}: {encoder} has no id {word}; are both of one release?")
        tokens.append(pieces[int(word)] if word.isdecimal() else word)
    if "<mask>" not in tokens:
        tokens.append("<mask>")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if vocabulary[token] != number)
        raise UserError(f"{dictionary}: the token {twice!r} stands there twice; get the file anew")
    if missing := [number for number, token in pieces.items() if token not in vocabulary]:
        raise UserError(f"{dictionary}: {len(missing)} ids of {encoder} are missing, first {missing[0]}; get it anew")
    return _bart(vocabulary, read_merges(merges_file, vocabulary), dictionary)


def by_content(vocabulary_file: Path, merges_file: Path) -> hf.Tokenizer:
    """Read Hugging Face's vocab.json and merges.txt of GPT, GPT-2 or BART: their tokens tell them apart."""
    vocabulary = read_ids(vocabulary_file)
    if {"<s>", "</s>", "<mask>"} <= vocabulary.keys():
        return bart(vocabulary_file, merges_file)
    # A byte-level vocabulary spells the space as Ġ and might hold </w> as text.
    if "Ġ" not in vocabulary and any(token.endswith("</w>") for token in vocabulary):
        return gpt(vocabulary_file, merges_file)
    return gpt2(vocabulary_file, merges_file)


def bert(vocabulary_file: Path) -> hf.Tokenizer:
    """Read BERT's WordPiece (section 3), which DistilBERT shares. Words longer than 100 characters become `[UNK]`.

    tokenizer_config.json says whether it lowers case; without one it does if no token has a capital. Accents go with
    the capitals, unless `strip_accents` says otherwise.
    """
    lines, beside = read_lines(vocabulary_file), companions(vocabulary_file.parent)
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(lines):
        if token in vocabulary:
            raise UserError(
                f"{vocabulary_file}, line {number + 1}: {token!r} stands there twice, first in line "
                f"{vocabulary[token] + 1}; get the file anew"
            )
        vocabulary[token] = number
    _demand(vocabulary, ("[UNK]", "[CLS]", "[SEP]"), vocabulary_file, "BERT")
    # "ℝ" is a capital to Unicode and in the lower-case vocabulary: what counts is that lower() changes it.
    cased = any(token != token.lower() for token in vocabulary if not re.fullmatch(r"\[.*\]", token))
    ids = beside.place(vocabulary, vocabulary_file)
    tokenizer = hf.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=beside.setting("tokenize_chinese_chars", bool, True),
        strip_accents=beside.setting("strip_accents", bool, None),
        lowercase=beside.setting("do_lower_case", bool, not cased),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = bert_template(tokenizer)
    return beside.finish(tokenizer, _special(*(token for token in _BERT if token in ids)), ids)


def _byte_level(ids: Mapping[str, int], merges: list[tuple[str, str]], beside: Companions) -> hf.Tokenizer:
    tokenizer = hf.Tokenizer(models.BPE(dict(ids), merges, fuse_unk=False))
    prefix = beside.setting("add_prefix_space", bool, False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bart(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], where: Path) -> hf.Tokenizer:
    beside = companions(where.parent)
    ids = beside.place(vocabulary, where)
    tokenizer = _byte_level(ids, merges, beside)
    tokenizer.post_processor = bart_template(tokenizer)
    # The mask takes the space before it: it stands for words with theirs.
    return beside.finish(tokenizer, _special(*_BART) | {"<mask>": special_token("<mask>", lstrip=True)}, ids)


def _special(*spellings: str) -> dict[str, hf.AddedToken]:
    return {spelling: special_token(spelling) for spelling in spellings}


def _demand(vocabulary: Mapping[str, int], tokens: tuple[str, ...], where: Path, kind: str) -> None:
    if missing := [token for token in tokens if token not in vocabulary]:
        raise UserError(f"{where} has no {missing[0]}; is it a vocabulary of {kind}?")
