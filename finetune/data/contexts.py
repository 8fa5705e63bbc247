"""Questions about contexts: the answers that stand in a context, and the windows in which a model reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.data.tokenization import Encoded, Encoder, nested
from finetune.data.values import without_surrogates
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

CONTEXT_ROLE = "context"
NO_ANSWER = 0  # the position of the window's first token, which stands for "no answer here"
OUTSIDE = -1  # the place of a token that is not of the context
Answer = dict[str, Any]


def answers_type() -> pa.DataType:
    """Return how answers are stored: a list of `{text, start}`, the start in characters of the context."""
    import pyarrow as pa

    return pa.list_(pa.struct([("text", pa.string()), ("start", pa.int32())]))


# -- answers in their contexts


def read_answers(value: Any, context: str) -> tuple[list[Answer], str]:
    """Return answers as `{text, start}`, or none and the reason why they cannot be used.

    Read are SQuAD's `{"text": [...], "answer_start": [...]}`, a list of `{"text", "answer_start"}` (or `start`), and
    texts without a place, which are taken to stand where the context has them first. No value, an empty list and a
    blank text say that the context holds no answer.
    """
    listed = _list_answers(value)
    if listed is None:
        return [], "wrong_type_of_answers"
    found = []
    for text, start in listed:
        text = without_surrogates(text)
        start = context.find(text) if start is None else start
        if not text.strip() or start < 0 or not context.startswith(text, start):
            return [], "answer_not_in_context"
        found.append({"text": text, "start": start})
    return found, ""


def _list_answers(value: Any) -> list[tuple[str, int | None]] | None:
    """Return texts and places; None if the value has another form than those that are read."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
        if not isinstance(texts, list):
            texts, starts = [texts], [starts]
        if starts is None:
            starts = [None] * len(texts)
        if not isinstance(starts, list) or len(starts) != len(texts):
            return None
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list):
        items = [item if isinstance(item, dict) else {"text": item} for item in value]
        pairs = [(item.get("text"), item.get("answer_start", item.get("start"))) for item in items]
    else:
        pairs = [(value, None)]
    good = all(isinstance(text, str) and (start is None or type(start) is int) for text, start in pairs)
    return pairs if good else None


def keep_answers(
    answers: Sequence[Answer], before: str, after: str, clean: Callable[[str], str]
) -> tuple[list[Answer], str]:
    """Return the answers where they stand in a context that was cleaned, or none and the reason.

    `before` and `after` are the context, `clean` the cleaners that made one from the other. An answer is found again
    if the context up to its end, cleaned, is how the cleaned context begins; or else if it occurs as often as before:
    then it is the same of its occurrences. Everything else would be a guess, and the row is not used.
    """
    kept = []
    for answer in answers:
        text = clean(answer["text"]) or answer["text"].strip()
        start = _place_after(text, answer, before, after, clean)
        if start is None:
            return [], "answer_lost_in_cleaning"
        kept.append({"text": text, "start": start})
    return kept, ""


def _place_after(text: str, answer: Answer, before: str, after: str, clean: Callable[[str], str]) -> int | None:
    until = clean(before[: answer["start"] + len(answer["text"])])
    if until.endswith(text) and after.startswith(until):
        return len(until) - len(text)
    places_before, places_after = _occurrences(answer["text"], before), _occurrences(text, after)
    if len(places_before) != len(places_after):
        return None
    return places_after[places_before.index(answer["start"])]


def _occurrences(text: str, context: str) -> list[int]:
    """Return where a text begins in a context; occurrences may overlap."""
    found, place = [], context.find(text)
    while place >= 0:
        found.append(place)
        place = context.find(text, place + 1)
    return found


# -- windows


class ContextWindow(NamedTuple):
    """What a model reads at once: the question, and some or all of the context.

    `starts` and `ends` say for each token which characters of the context it stands for (-1: it is not of the
    context). Its tokens of the context begin at `first`, and are the context's from the one with number `skipped` on.
    """

    ids: list[int]
    types: list[int]
    starts: list[int]
    ends: list[int]
    first: int
    skipped: int


@dataclass(frozen=True)
class ReadContexts:
    """The windows of each row, and counts of each row, shape (rows,): its tokens before any cut, and those lost.

    `places` are for each row the first characters of its context's tokens and those behind the last, shape (2, tokens).
    """

    windows: list[list[ContextWindow]]
    places: list[NDArray[Any]]
    lengths: NDArray[Any]
    lost: NDArray[Any]


def encode_contexts(
    encoder: Encoder,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Sequence[Answer]] | None,
    *,
    max_question_length: int,
) -> Encoded:
    """Return what a model reads, where each token stands in the context, and with `answers` each window's span.

    An answer that no window sees whole counts among the entities that are lost.
    """
    import numpy as np

    read = read_contexts(encoder, questions, contexts, max_question_length=max_question_length)
    parts = [("input_ids", "ids"), ("context_starts", "starts"), ("context_ends", "ends")]
    parts += [("token_type_ids", "types")] if encoder.wants_types else []
    features = {
        name: nested([[getattr(window, part) for window in row] for row in read.windows], encoder.limits)
        for name, part in parts
    }
    lost = None
    if answers is not None:
        spans = answer_spans(read, answers)
        features["answer_span"] = nested(spans, encoder.limits)
        pairs = zip(answers, spans, strict=True)
        lost = np.asarray([bool(given) and not any(map(any, row)) for given, row in pairs], dtype=np.int32)
    unknown = sum(token == encoder.unknown_id for row in read.windows for window in row for token in window.ids)
    words = sum(len(text.split()) for text in (*questions, *contexts))
    text_tokens = int(read.lengths.sum()) - encoder.special_tokens(pairs=True) * len(questions)
    return Encoded(features, read.lengths, read.lost, unknown, words, text_tokens, lost)


def read_contexts(
    encoder: Encoder, questions: Sequence[str], contexts: Sequence[str], *, max_question_length: int
) -> ReadContexts:
    """Encode each question with its context, the question first; only the context is cut, or read in windows.

    Two windows share `stride` tokens of the context, and the windows are those of tokenizers' `only_second`. A
    question gets at most `max_question_length` tokens, and at most half of what a window holds; the end of a longer
    one is cut off, and counts among the tokens that are lost.
    """
    import numpy as np

    if encoder._fast is None:
        raise FinetuneError(
            "model.id: question-answering needs a fast tokenizer, which says where in the context a token stands, and "
            "this model has none. Choose a model with a tokenizer.json."
        )
    question_room = _question_room(encoder, max_question_length)
    windows, places, lengths, lost = [], [], [], []
    for encoding in encoder._fast.encode_batch(list(zip(questions, contexts, strict=True))):
        row, inside, cut = _windows(encoding, question_room, encoder)
        windows.append(row)
        places.append(inside)
        lengths.append(len(encoding))
        lost.append(cut)
    return ReadContexts(windows, places, np.asarray(lengths, dtype=np.int32), np.asarray(lost, dtype=np.int32))


def _question_room(encoder: Encoder, max_question_length: int) -> int:
    """Return how many tokens a question gets; raise FinetuneError where too few are left for the context."""
    limits, special = encoder.limits, encoder.special_tokens(pairs=True)
    room = limits.max_length - special
    question_room = min(max_question_length, room // 2)
    if question_room < 1:
        raise FinetuneError(
            f"model.max_length: expected room for a question and a context beside {special} special tokens, "
            f"found {limits.max_length}"
        )
    if limits.windows and limits.stride >= room - question_room:
        raise FinetuneError(
            f"model.stride: expected less than {room - question_room} (the tokens of context in a window of "
            f"{limits.max_length} beside a question of {question_room}), found {limits.stride}"
        )
    return question_room


def _windows(encoding: Any, question_room: int, encoder: Encoder) -> tuple[list[ContextWindow], NDArray[Any], int]:
    """Return a row's windows, the places of its context's tokens, shape (2, tokens), and how many tokens are lost."""
    import numpy as np

    sequences = np.asarray([OUTSIDE if number is None else number for number in encoding.sequence_ids])
    offsets = np.where(sequences == 1, np.asarray(encoding.offsets).T, OUTSIDE)
    whole = np.vstack([encoding.ids, encoding.type_ids, offsets])
    surplus = np.flatnonzero(sequences == 0)[question_room:]
    whole, sequences = np.delete(whole, surplus, axis=1), np.delete(sequences, surplus)
    inside = np.flatnonzero(sequences == 1)  # a context may be without any token
    first, end = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (len(sequences),) * 2
    pieces = _pieces(end - first, encoder.limits.max_length - (len(sequences) - (end - first)), encoder)
    windows = []
    for start, stop in pieces:
        seen = [whole[:, :first], whole[:, first + start : first + stop], whole[:, end:]]
        ids, types, starts, ends = np.hstack(seen).tolist()
        windows.append(ContextWindow(ids, types, starts, ends, first, start))
    left_out = 0 if encoder.limits.windows else end - first - (pieces[0][1] - pieces[0][0])
    return windows, whole[2:, first:end], len(surplus) + left_out


def _pieces(tokens: int, room: int, encoder: Encoder) -> list[tuple[int, int]]:
    """Return which tokens of a context each window sees: the first, and the one behind the last."""
    if tokens <= room:
        return [(0, tokens)]
    if not encoder.limits.windows:
        return [(0, room)] if encoder.direction == "right" else [(tokens - room, tokens)]
    step = room - encoder.limits.stride
    starts = range(0, tokens - encoder.limits.stride, step)  # the last window is the first that reaches the end
    return [(start, min(start + room, tokens)) for start in starts]


def answer_spans(read: ReadContexts, answers: Sequence[Sequence[Answer]]) -> list[list[list[int]]]:
    """Return for each window of each row the first and last token of the row's first answer.

    A window that does not see the whole answer, or of a row without one, has both at its first token: NO_ANSWER.
    """
    found = []
    for windows, (starts, ends), given in zip(read.windows, read.places, answers, strict=True):
        if not given:
            found.append([[NO_ANSWER, NO_ANSWER] for _ in windows])
            continue
        begin, finish = given[0]["start"], given[0]["start"] + len(given[0]["text"])
        first = int(ends.searchsorted(begin, side="right"))
        last = int(starts.searchsorted(finish, side="left")) - 1
        found.append([_span_in(window, first, last) for window in windows])
    return found


def _span_in(window: ContextWindow, first: int, last: int) -> list[int]:
    """Return which tokens of a window are the context's tokens `first` to `last`, if it sees them all."""
    seen = sum(place != OUTSIDE for place in window.starts)
    if not window.skipped <= first <= last < window.skipped + seen:
        return [NO_ANSWER, NO_ANSWER]
    shift = window.first - window.skipped
    return [first + shift, last + shift]
