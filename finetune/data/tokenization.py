"""From text to token ids: with what was cut off, what the vocabulary did not know, and windows over long rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Overflow = Literal["truncate", "error", "window"]
NO_TARGET = -100


@dataclass(frozen=True)
class Limits:
    """How long a row may become, and what happens to a longer one; `stride` is how many tokens two windows share."""

    max_length: int
    overflow: Overflow = "truncate"
    stride: int = 0

    @property
    def windows(self) -> bool:
        """Whether a row may become several windows."""
        return self.overflow == "window"


@dataclass(frozen=True)
class Encoded:
    """The model's inputs for some rows, one entry a row, without padding and without what follows from the lengths.

    Each feature is an Arrow array: numbers, lists of numbers (one a token), or, with windows, lists of such lists.
    `whole_lengths` are the tokens of each row before anything is cut; `tokens_lost` and `entities_lost` count, for each
    row, what truncation cut off; `text_tokens` are all tokens before that, without the special ones. `untrainable` says
    of each row whether nothing is left of it to be learned; `asked_otherwise` counts rows that are learned after other
    ids than those after which their answer will be asked for.
    """

    features: dict[str, pa.Array]
    whole_lengths: NDArray[Any]
    tokens_lost: NDArray[Any]
    unknown_tokens: int = 0
    words: int = 0
    text_tokens: int = 0
    entities_lost: NDArray[Any] | None = None
    untrainable: NDArray[Any] | None = None
    asked_otherwise: int = 0

    def with_features(self, **features: pa.Array) -> Encoded:
        """Return the same with more features."""
        return replace(self, features={**self.features, **features})


class Targets(NamedTuple):
    """Texts that are to be written: an Arrow list of ids for each, and for each how many of its tokens were cut off."""

    ids: pa.Array
    tokens_lost: NDArray[Any]
    unknown_tokens: int
    words: int
    text_tokens: int


class WordWindow(NamedTuple):
    """The tokens of a row of words that one window sees.

    For each its id, the word that it came from (-1: a special token), and whether it is the first of that word.
    """

    ids: list[int]
    words: list[int]
    starts: list[bool]


@dataclass
class Encoder:
    """A tokenizer with a limit of length. It can be sent to another process, and loads no torch there."""

    limits: Limits
    unknown_id: int | None
    wants_types: bool
    direction: str
    end_id: int | None = None
    tokenizer: Any = field(default=None, repr=False)
    _fast: Any = None
    _slow: Any = None
    _cutting: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, tokenizer: Any, limits: Limits, *, whole: bool = False) -> Encoder:
        """Make an encoder from a Hugging Face tokenizer; one without a fast form works too, but makes no windows.

        With `whole` it keeps the tokenizer itself as well, for those who need more than its fast backend.
        """
        kept = tokenizer if whole else None
        wants_types = "token_type_ids" in tokenizer.model_input_names
        side = str(getattr(tokenizer, "truncation_side", "right"))
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            if limits.windows:
                raise FinetuneError(
                    "model.overflow: windows need a fast tokenizer, and this model has none. Use truncate or error."
                )
            return cls(
                limits, tokenizer.unk_token_id, wants_types, side, tokenizer.eos_token_id, tokenizer, _slow=tokenizer
            )
        fast = _copy(backend)
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
        special = fast.num_special_tokens_to_add(False)
        if limits.windows and limits.stride >= limits.max_length - special:
            raise FinetuneError(
                f"model.stride: expected less than {limits.max_length - special} (the tokens of text in a window of "
                f"{limits.max_length}), found {limits.stride}"
            )
        return cls(limits, tokenizer.unk_token_id, wants_types, side, tokenizer.eos_token_id, kept, _fast=fast)

    def texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Encode texts, or pairs of texts, with the model's special tokens."""
        words = sum(len(text.split()) for text in chain(texts, pairs or ()))
        if self._fast is None:
            return self._slow_texts(texts, pairs, words)
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self._fast.encode_batch_fast(rows)
        lengths, lost, cut = self._measure(encodings, rows)
        flat = _flat(_kept(encodings, cut), "ids")
        features = {"input_ids": self._nest(flat, encodings, cut)}
        if self.wants_types and self._has_types(pairs is not None):
            features["token_type_ids"] = self._nest(_flat(_kept(encodings, cut), "type_ids"), encodings, cut)
        unknown = int((flat == self.unknown_id).sum()) if self.unknown_id is not None else 0
        special = self.special_tokens(pairs=pairs is not None) * len(rows)
        return Encoded(features, lengths, lost, unknown, words, int(lengths.sum()) - special)

    def targets(self, texts: Sequence[str], max_length: int) -> Targets:
        """Encode texts that are to be written, with the end of text behind each that is not cut at `max_length`.

        Raises FinetuneError for a tokenizer that has no end of text: nothing could learn where to stop.
        """
        import numpy as np
        import pyarrow as pa

        if self.end_id is None:
            raise FinetuneError(
                "model.id: expected a tokenizer with an end-of-text token, which says where a text ends; found none"
            )
        if self._fast is None:
            found = self._slow(text_target=list(texts), truncation=False, verbose=False)["input_ids"]
            special = self._slow.num_special_tokens_to_add()
        else:
            found = [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts))]
            special = self._fast.num_special_tokens_to_add(False)
        whole = [ids if ids[-1:] == [self.end_id] else [*ids, self.end_id] for ids in found]
        lost = np.array([max(0, len(ids) - max_length) for ids in whole], dtype=np.int32)
        kept = [ids[:max_length] for ids in whole]
        flat = np.fromiter(chain.from_iterable(kept), dtype=np.int32, count=sum(map(len, kept)))
        unknown = int((flat == self.unknown_id).sum()) if self.unknown_id is not None else 0
        lists = pa.ListArray.from_arrays(_offsets(map(len, kept)), pa.array(flat))
        text_tokens = sum(map(len, found)) - special * len(found)
        return Targets(lists, lost, unknown, sum(len(text.split()) for text in texts), text_tokens)

    def words(
        self, rows: Sequence[str] | Sequence[Sequence[str]]
    ) -> tuple[list[list[WordWindow]], NDArray[Any], NDArray[Any]]:
        """Encode rows of words; return for each its windows (one, unless rows become windows), and two counts.

        A text has the words that the tokenizer parts it into. The counts are the row's tokens before anything is cut,
        and those that are lost.
        """
        if self._fast is None:
            raise FinetuneError("this task needs a fast tokenizer, which says from which word a token comes")
        parted = bool(rows) and not isinstance(rows[0], str)
        given = [list(words) for words in rows] if parted else list(rows)
        encodings = self._fast.encode_batch(given, is_pretokenized=parted)
        lengths, lost, cut = self._measure(encodings, given, is_pretokenized=parted)
        found = []
        for index, encoding in enumerate(encodings):
            parts = cut.get(index, [encoding])
            starts = _word_starts(encoding.word_ids)
            # where the window begins among the tokens of the whole row, special tokens aside
            first = int(lost[index]) if self.direction == "left" else 0
            windows = []
            for part in parts:
                windows.append(_window(part, starts, first))
                first += sum(word is not None for word in part.word_ids) - self.limits.stride
            found.append(windows)
        return found, lengths, lost

    def special_tokens(self, *, pairs: bool = False) -> int:
        """Return how many special tokens a text, or a pair, is given."""
        return int((self._slow or self._fast).num_special_tokens_to_add(pairs))

    def lengths(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[int]:
        """Return how many tokens each text, or row of words, has before anything is cut."""
        pretokenized = bool(texts) and not isinstance(texts[0], str)
        if self._fast is None:
            return [len(ids) for ids in self._slow(list(texts), pairs, truncation=False, verbose=False)["input_ids"]]
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [len(encoding) for encoding in self._fast.encode_batch_fast(rows, is_pretokenized=pretokenized)]

    def _measure(
        self, encodings: Sequence[Any], rows: Sequence[Any], *, is_pretokenized: bool = False
    ) -> tuple[NDArray[Any], NDArray[Any], dict[int, list[Any]]]:
        """Return lengths, tokens lost, and for each row that is too long its windows, or its start."""
        import numpy as np

        lengths = np.fromiter(map(len, encodings), dtype=np.int32, count=len(encodings))
        over = np.maximum(lengths - self.limits.max_length, 0)
        cut: dict[int, list[Any]] = {}
        too_long = np.flatnonzero(over).tolist()
        if too_long:
            again = self._cutter().encode_batch([rows[index] for index in too_long], is_pretokenized=is_pretokenized)
            for index, encoding in zip(too_long, again, strict=True):
                cut[index] = [encoding, *encoding.overflowing] if self.limits.windows else [encoding]
        return lengths, np.zeros_like(over) if self.limits.windows else over, cut

    def _cutter(self) -> Any:
        if self._cutting is None:
            self._cutting = _copy(self._fast)
            self._cutting.encode_special_tokens = self._fast.encode_special_tokens
            stride = self.limits.stride if self.limits.windows else 0
            direction = "right" if self.limits.windows else self.direction
            self._cutting.enable_truncation(self.limits.max_length, stride=stride, direction=direction)
        return self._cutting

    def _has_types(self, pairs: bool) -> bool:
        """Tell whether segment ids are anything but zeros: they are stored only then."""
        return pairs or any(self._fast.encode("a").type_ids)

    def _nest(self, flat: NDArray[Any], encodings: Sequence[Any], cut: dict[int, list[Any]]) -> pa.Array:
        import pyarrow as pa

        lists = pa.ListArray.from_arrays(_offsets(len(part) for part in _kept(encodings, cut)), pa.array(flat))
        if not self.limits.windows:
            return lists
        return pa.ListArray.from_arrays(_offsets(len(cut.get(index, (0,))) for index in range(len(encodings))), lists)

    def _slow_texts(self, texts: Sequence[str], pairs: Sequence[str] | None, words: int) -> Encoded:
        import numpy as np
        import pyarrow as pa

        options = {"truncation": True, "max_length": self.limits.max_length, "return_attention_mask": False}
        whole = np.asarray(self.lengths(texts, pairs), dtype=np.int32)
        encoded = self._slow(list(texts), None if pairs is None else list(pairs), **options, verbose=False)
        lost = np.maximum(whole - self.limits.max_length, 0)
        features = {
            name: pa.array(encoded[name], pa.list_(pa.int32()))
            for name in ("input_ids", "token_type_ids")
            if name in encoded and (name == "input_ids" or any(map(any, encoded[name])))
        }
        unknown = sum(ids.count(self.unknown_id) for ids in encoded["input_ids"])
        special = self.special_tokens(pairs=pairs is not None) * len(whole)
        return Encoded(features, whole, lost, unknown, words, int(whole.sum()) - special)


def _word_starts(words: Sequence[int | None]) -> set[int]:
    """Return at which tokens words start, special tokens not counted."""
    inside = [word for word in words if word is not None]
    return {index for index, word in enumerate(inside) if index == 0 or inside[index - 1] != word}


def _window(encoding: Any, starts: set[int], first: int) -> WordWindow:
    words = [-1 if word is None else word for word in encoding.word_ids]
    places = accumulate((word >= 0 for word in words), initial=first)
    return WordWindow(
        encoding.ids, words, [word >= 0 and place in starts for word, place in zip(words, places, strict=False)]
    )


def nested(windows: Sequence[Sequence[Sequence[int]]], limits: Limits) -> pa.Array:
    """Return numbers given for each token of each window of each row as the Arrow array that `Encoded` holds."""
    import numpy as np
    import pyarrow as pa

    flat = [values for row in windows for values in row]
    numbers = np.fromiter(chain.from_iterable(flat), dtype=np.int32, count=sum(map(len, flat)))
    lists = pa.ListArray.from_arrays(_offsets(map(len, flat)), pa.array(numbers))
    return pa.ListArray.from_arrays(_offsets(map(len, windows)), lists) if limits.windows else lists


def _copy(backend: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(backend.to_str())


def _kept(encodings: Sequence[Any], cut: dict[int, list[Any]]) -> Sequence[Any]:
    """Return the encodings with those that are too long replaced."""
    if not cut:
        return encodings
    return [part for index, encoding in enumerate(encodings) for part in cut.get(index, (encoding,))]


def _flat(encodings: Sequence[Any], name: str) -> NDArray[Any]:
    import numpy as np

    lists = [getattr(encoding, name) for encoding in encodings]
    return np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=sum(map(len, lists)))


def _offsets(lengths: Any) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    ends = np.cumsum(np.fromiter(lengths, dtype=np.int32), dtype=np.int32)
    return pa.array(np.concatenate([np.zeros(1, dtype=np.int32), ends]))
