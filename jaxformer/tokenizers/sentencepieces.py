"""T5's tokenizer from its released file, a SentencePiece model."""

import re
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.tokenizers.files import companions, read_bytes, special_token
from jaxformer.tokenizers.templates import t5_template
from jaxformer.tokenizers.tokenizer import SENTINEL

# SentencePiece's types of pieces: sentencepiece_model.proto.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_UNIGRAM = 1
_SENTINEL = re.compile("▁?" + SENTINEL.format(r"\d+"))


def t5(path: Path) -> hf.Tokenizer:
    """Read `spiece.model`: SentencePiece's unigram model, then 100 sentinels, `<extra_id_0>` the last id.

    tokenizer_config.json may state another number as `extra_ids`; a file that has sentinels of its own gets no more.
    The steps are those of `SentencePieceProcessor.encode`, except where the library, and so Hugging Face's tokenizer,
    does otherwise: of several marks on one letter it may lose all but the first, and a carriage return and a new line
    are one space. Special tokens that are spelled out in a text are text, as there (`Tokenizer.encode`).
    Raises UserError for a damaged file and for models that are not unigram models of T5's kind.
    """
    proto, beside = _parse(path), companions(path.parent)
    # Some files spell sentinels with the mark of a word in front.
    names = [piece.piece.removeprefix("▁") if _is_sentinel(piece.piece) else piece.piece for piece in proto.pieces]
    types = {name: piece.type for name, piece in zip(names, proto.pieces, strict=True)}
    if len(types) < len(names) or _UNKNOWN not in types.values():
        raise UserError(f"{path} is damaged: a piece stands there twice, or the unknown one is missing; get it anew")
    if "</s>" not in types:
        raise UserError(f"{path} has no piece </s>, with which T5 ends a text; give the model of a T5")
    special = [name for name, kind in types.items() if kind in (_UNKNOWN, _CONTROL) or _is_sentinel(name)]
    if not any(map(_is_sentinel, names)):
        count = beside.setting("extra_ids", int, 100)
        check_range(f"{path.parent / 'tokenizer_config.json'}: extra_ids", count, at_least=0)
        special += [SENTINEL.format(number) for number in reversed(range(count))]
    tokens = {name: hf.AddedToken(name, normalized=False) for name, kind in types.items() if kind == _USER_DEFINED}
    tokens |= {name: special_token(name) for name in special}
    ids = beside.place({name: number for number, name in enumerate(dict.fromkeys([*names, *special]))}, path)
    if max(ids.values()) >= len(ids):
        raise UserError(f"{path}: the tokens added beside it leave ids out, as no unigram model can; number them on")
    scores = [(name, piece.score) for name, piece in zip(names, proto.pieces, strict=True)]
    unknown = list(types.values()).index(_UNKNOWN)
    tokenizer = hf.Tokenizer(models.Unigram(scores, unk_id=unknown, byte_fallback=False))
    _follow(tokenizer, proto, beside.setting("add_prefix_space", bool, proto.normalizer_spec.add_dummy_prefix))
    tokenizer = beside.finish(tokenizer, tokens, ids)
    tokenizer.post_processor = t5_template(tokenizer)
    return tokenizer


def _is_sentinel(piece: str) -> bool:
    return _SENTINEL.fullmatch(piece) is not None


def _parse(path: Path) -> Any:
    content = read_bytes(path)
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except Exception as error:  # protobuf refuses schemas newer than itself with an error of its own
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: the schema of SentencePiece models is unusable ({why}); upgrade protobuf") from error
    schema: Any = sentencepiece_model_pb2
    proto = schema.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise UserError(f"{path} is damaged or no SentencePiece model: {error}; get it anew") from error
    # The settings follow the pieces: a file cut between two pieces is well formed, but ends too early.
    if not (proto.pieces and proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")):
        raise UserError(f"{path} is damaged or no SentencePiece model: parts of one are missing; get it anew")
    trainer = proto.trainer_spec
    if trainer.model_type != _UNIGRAM:
        kind = schema.TrainerSpec.ModelType.Name(trainer.model_type)
        raise UserError(f"{path} is a SentencePiece model of type {kind}; only UNIGRAM models, as T5's, can be read")
    if trainer.byte_fallback or trainer.treat_whitespace_as_suffix:
        raise UserError(f"{path} falls back to bytes or marks the ends of words, as no T5 does; it cannot be read")
    return proto


def _follow(tokenizer: hf.Tokenizer, proto: Any, prefix: bool) -> None:
    """Give the tokenizer SentencePiece's normalisation and its mark of words, as the model's settings say; `prefix`:
    a text begins with such a mark."""
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # Only spaces: the map has made those of the other white space that SentencePiece takes for it.
        steps += [normalizers.Replace(hf.Regex(r"\A +|[ ▁]+\z"), ""), normalizers.Replace(hf.Regex(" {2,}"), " ")]
    if prefix:
        # The library marks no first word that begins with a space or a mark itself; SentencePiece does.
        steps += [normalizers.Replace(hf.Regex(rf"\A{start}"), f"▁{start}") for start in ("▁", " ")]
    scheme = "always" if prefix else "never"
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=scheme, split=proto.trainer_spec.split_by_whitespace
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
