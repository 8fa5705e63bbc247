"""Training of a tokenizer on the rows' own texts; the same texts give the same files, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.data.tokenizer_training.templates import TEMPLATES, TemplateName, assemble
from finetune.data.tokenizer_training.word_counts import (
    WordCounts,
    count_words,
    drop_words,
    most_frequent_characters,
    split_words,
)
from finetune.errors import FinetuneError
from finetune.registry import tokenizers

Size = Annotated[int, Field(ge=64)]
Count = Annotated[int, Field(ge=1)]
Form = Literal["nfc", "nfkc", "none"]

BYTES = 256
REPEATS_AT_ONCE = 1_000


def train_tokenizer(name: str, options: Mapping[str, Any], texts: Iterable[list[str]]) -> Any:
    """Return a `transformers.PreTrainedTokenizerFast`, trained on batches of texts, which are read once.

    `len(tokenizer)` is the size of the vocabulary, which is smaller than `options["vocabulary"]` where the texts do not
    support as much. Raises FinetuneError for texts without a word, and for a vocabulary that is too small for them.
    """
    return tokenizers.get(name).build(options)(iter(texts))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files that `transformers.AutoTokenizer.from_pretrained(folder)` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)


def check_special_tokens(options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the special tokens differ from each other and from those of the template."""
    tokens = options["special_tokens"]
    if any(not token.strip() for token in tokens):
        raise ValueError("special_tokens: expected tokens of at least one character, found an empty one")
    taken = list(TEMPLATES[options["template"]].roles.values())
    repeated = [token for index, token in enumerate(tokens) if token in [*taken, *tokens[:index]]]
    if repeated:
        raise ValueError(
            f"special_tokens: expected tokens that are not there yet, found {repeated[0]!r} a second time; the "
            f"template {options['template']} brings {', '.join(dict.fromkeys(taken))}"
        )


@tokenizers.register("bpe", check=check_special_tokens)
def bpe(
    texts: Iterator[list[str]],
    *,
    vocabulary: Size = 8000,
    lowercase: bool = False,
    normalizer: Form = "none",
    strip_accents: bool = False,
    min_frequency: Count = 2,
    prefix_space: bool = False,
    special_tokens: list[str] = [],  # noqa: B006 -- a default that pydantic copies
    template: TemplateName = "roberta",
    max_length: Count | None = None,
) -> Any:
    """Merge the most frequent pairs of bytes: no text is unknown, and without a normalizer none is changed.

    Sennrich et al. 2016, https://aclanthology.org/P16-1162, on bytes as in GPT-2. `prefix_space` begins every text with
    a blank, so that its first word is written as elsewhere; words that are given one by one need it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = [*TEMPLATES[template].names(unknown=False), *special_tokens]
    _check_size(vocabulary, BYTES, len(special), "bytes")
    backend = Tokenizer(models.BPE())
    backend.normalizer = _normalizer(normalizer, lowercase=lowercase, strip_accents=strip_accents)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    _check_words(trainer.get_word_count())
    return assemble(
        backend,
        TEMPLATES[template],
        special_tokens,
        max_length=max_length,
        unknown=False,
        before=processors.ByteLevel(add_prefix_space=prefix_space, trim_offsets=True),
    )


@tokenizers.register("wordpiece", check=check_special_tokens)
def wordpiece(
    texts: Iterator[list[str]],
    *,
    vocabulary: Size = 8000,
    lowercase: bool = False,
    normalizer: Form = "nfc",
    strip_accents: bool = False,
    min_frequency: Count = 2,
    characters: Count | None = None,
    special_tokens: list[str] = [],  # noqa: B006 -- a default that pydantic copies
    template: TemplateName = "bert",
    max_length: Count | None = None,
) -> Any:
    """Merge the most frequent pairs of characters within words and punctuation marks, as BERT's tokenizer has them.

    Devlin et al. 2019, https://aclanthology.org/N19-1423. `characters` keeps only so many, the most frequent ones: a
    word with another one is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = TEMPLATES[template].roles["unk_token"]
    special = [*TEMPLATES[template].names(unknown=True), *special_tokens]
    backend = Tokenizer(models.WordPiece({unknown: 0}, unk_token=unknown))
    clean = normalizers.BertNormalizer(strip_accents=False, lowercase=False)  # control characters, Chinese ones apart
    backend.normalizer = _normalizer(normalizer, clean, lowercase=lowercase, strip_accents=strip_accents)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    counts = count_words(backend, texts)
    _check_words(len(counts))
    counts = drop_words(counts, most_frequent_characters(counts, characters))
    vocabulary_ids = _merge_characters(counts, special, vocabulary, min_frequency)
    backend.model = models.WordPiece(vocabulary_ids, unk_token=unknown)
    return assemble(backend, TEMPLATES[template], special_tokens, max_length=max_length, mask_takes_blank=False)


@tokenizers.register("unigram", check=check_special_tokens)
def unigram(
    texts: Iterator[list[str]],
    *,
    vocabulary: Size = 8000,
    lowercase: bool = False,
    normalizer: Form = "nfkc",
    strip_accents: bool = False,
    min_frequency: Count = 2,
    characters: Count | None = None,
    special_tokens: list[str] = [],  # noqa: B006 -- a default that pydantic copies
    template: TemplateName = "t5",
    max_length: Count | None = None,
) -> Any:
    """Keep the pieces of words under which the texts are most probable, as T5's and ALBERT's tokenizers do.

    Kudo 2018, https://aclanthology.org/P18-1007. `characters` keeps only so many, the most frequent ones: the others
    are unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from finetune.data.tokenizer_training.unigram_training import train_unigram

    special = [*TEMPLATES[template].names(unknown=True), *special_tokens]
    backend = Tokenizer(models.Unigram())
    backend.normalizer = _normalizer(normalizer, lowercase=lowercase, strip_accents=strip_accents)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    counts = count_words(backend, texts)
    _check_words(len(counts))
    kept = most_frequent_characters(counts, characters)
    _check_size(vocabulary, len(kept), len(special), "characters")
    pieces = train_unigram(split_words(counts, kept), vocabulary - len(special), min_frequency)
    learned = [(piece, score) for piece, score in pieces if piece not in special]
    unknown_id = special.index(TEMPLATES[template].roles["unk_token"])
    backend.model = models.Unigram([*((token, 0.0) for token in special), *learned], unknown_id, False)
    return assemble(backend, TEMPLATES[template], special_tokens, max_length=max_length)


def _normalizer(form: Form, *first: Any, lowercase: bool, strip_accents: bool) -> Any:
    """Return the normalizer, or None for none; the form comes last, because without accents letters fall apart."""
    from tokenizers import normalizers

    steps = list(first)
    if strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    if form != "none":
        steps.append(normalizers.NFC() if form == "nfc" else normalizers.NFKC())
    return normalizers.Sequence(steps) if steps else None


def _merge_characters(counts: WordCounts, special: list[str], size: int, min_frequency: int) -> dict[str, int]:
    """Return the ids of a WordPiece vocabulary.

    The library's trainer numbers the characters inside words in the order of a randomly seeded hash table, and ties
    between pairs go by these numbers. Here they are numbered before it starts, as if they were special tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    everywhere = {character for word, _ in counts for character in word}
    inside = sorted({f"##{character}" for word, _ in counts for character in word[1:]})
    _check_size(size, len(everywhere) + len(inside), len(special), "characters at the beginning and inside of words")
    backend = Tokenizer(models.WordPiece())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=min_frequency, special_tokens=[*special, *inside], show_progress=False
    )
    backend.train_from_iterator(_repeat(counts), trainer=trainer)
    ids: dict[str, int] = backend.get_vocab()
    return ids


def _repeat(counts: WordCounts) -> Iterator[str]:
    """Yield every word as often as it was counted, in lines of bounded length."""
    for word, count in counts:
        for start in range(0, count, REPEATS_AT_ONCE):
            yield f"{word} " * min(REPEATS_AT_ONCE, count - start)


def _check_words(count: int) -> None:
    if not count:
        raise FinetuneError(
            "tokenizer: expected texts with words to train on, found none. Look at what cleaning and filtering left of "
            "the train split, or leave `tokenizer` out to use the model's own."
        )


def _check_size(vocabulary: int, alphabet: int, special: int, what: str) -> None:
    if vocabulary < alphabet + special:
        remedy = "" if what == "bytes" else ", or set `tokenizer.characters` to keep only the most frequent ones"
        raise FinetuneError(
            f"tokenizer.vocabulary: expected at least {alphabet + special}, for {alphabet} {what} and {special} "
            f"special tokens; found {vocabulary}. Raise it{remedy}."
        )
