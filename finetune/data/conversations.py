"""What a causal language model reads of conversations, completions and plain text, and which tokens of it it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from finetune.data.chat_templates import (
    Message,
    Span,
    answer_spans,
    as_written,
    has_marks,
    own_marks,
    render,
    starts_with_bos,
)
from finetune.data.values import read_text, without_surrogates
from finetune.errors import FinetuneError, RowError

if TYPE_CHECKING:
    import pyarrow as pa

    from finetune.data.cleaning import Pipeline

LearnTurns = Literal["assistant", "last", "all"]
LearnText = Literal["completion", "all"]

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}


@dataclass(frozen=True)
class EncodedText:
    """What a causal language model reads: for each row its ids, whether each is learned (0 or 1), and bytes.

    `bytes` are the UTF-8 bytes of the text that is learned, by which bits per byte are reckoned. The markers around a
    turn and the end of text are learned, and so count as tokens and in the loss, but they are no text and no bytes.
    The first token of a row is never learned: nothing stands before it from which it could be told.

    `asked_otherwise` are the rows (their indices) whose last prompt, tokenized alone, is not how the row begins: there
    a tokenizer joins the end of the prompt with the beginning of the answer, so that the answer is learned after ids
    other than those after which it will be asked for.
    """

    ids: list[list[int]]
    learned: list[list[int]]
    bytes: list[int]
    asked_otherwise: tuple[int, ...] = ()

    @property
    def without_target(self) -> list[int]:
        """The rows (their indices) of which no token is learned."""
        return [index for index, row in enumerate(self.learned) if 1 not in row]


# -- conversations as they are given


def messages_type() -> pa.DataType:
    """Return how conversations are stored: a list of `{role, content}`."""
    import pyarrow as pa

    return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def read_messages(value: Any, *, answered: bool = True, clean: Pipeline | None = None) -> tuple[list[Message], str]:
    """Return a conversation as `{role, content}`, what is said in it cleaned, or none and the reason why not.

    Read are lists of `{role, content}` and of ShareGPT's `{from, value}`, where `human` is the user and `gpt` the
    assistant; other keys are not read, but a message that calls a tool in one is a fault, as the call would be lost.
    After what the system says, if it says anything, the user has to begin. An assistant's message may not be blank,
    for it would teach to say nothing; others may. The same role may speak twice, if the template can write it. With
    `answered` the conversation has to end with the assistant, as whatever follows could not be learned; without, it is
    one to be answered, and any end is fine.
    """
    if value is None or value == []:
        return [], "missing"
    if not isinstance(value, list):
        return [], "wrong_type_of"
    messages = []
    for item in value:
        message, reason = _read_message(item)
        if reason:
            return [], reason
        messages.append(message)
    reason = _fault([message["role"] for message in messages], answered=answered)
    if reason or clean is None:
        return ([], reason) if reason else (messages, "")
    return _cleaned(messages, clean)


def _cleaned(messages: Sequence[Message], clean: Pipeline) -> tuple[list[Message], str]:
    cleaned = []
    for message in messages:
        content, reason = read_text(message["content"], clean) if message["content"].strip() else ("", "")
        if reason:
            return [], f"{reason}_in"
        cleaned.append({**message, "content": content})
    return cleaned, ""


def _read_message(item: Any) -> tuple[Message, str]:
    if not isinstance(item, Mapping):
        return {}, "wrong_type_of"
    if item.get("tool_calls") or item.get("function_call"):
        return {}, "tool_call_in"
    role, content = item.get("role"), item.get("content")
    if role is None and content is None:
        role, content = item.get("from"), item.get("value")
        role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or not isinstance(content, str):
        return {}, "wrong_type_of"
    if role not in ROLES:
        return {}, "unknown_role_in"
    if role == "assistant" and not content.strip():
        return {}, "blank_answer_in"
    return {"role": role, "content": without_surrogates(content)}, ""


def _fault(roles: Sequence[str], *, answered: bool) -> str:
    speakers = [role for role in roles if role != "system"]
    if speakers[:1] != ["user"]:
        return "no_question_first_in"
    if answered and "assistant" not in roles:
        return "no_answer_in"
    return "no_answer_last_in" if answered and roles[-1] != "assistant" else ""


# -- conversations as they are read


class _Written(NamedTuple):
    """A conversation as text, what of it asks for its last message, and which of its characters are learned.

    `bytes` are those of the text that is learned. `marks` are there if the template's own marks say, for each token,
    what is learned, and no `spans` do.
    """

    text: str
    prompt: str
    bytes: int
    spans: list[Span]
    marks: list[int] | None = None


def encode_conversations(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], template: str, learn: LearnTurns
) -> EncodedText:
    """Return conversations as a template writes them, each tokenized once as a whole, and what of it is learned.

    The ids are those of the tokenizer's `apply_chat_template`: nothing is added to what the template writes, so that a
    begin-of-text token is there once or not at all. Learned are the tokens that hold a character of a turn of the
    `assistant`, or of its `last`, or `all`. A turn begins where the prompt for it ends, and ends with its marker, so
    that the model learns to stop. White space behind the marker is not learned, as it is never asked for.

    Nothing in a message is masked: a marker that stands in its content becomes the marker's token. RowError is raised
    where the template refuses a conversation, or where the turns cannot be found in what it writes.
    """
    _require_places(tokenizer)
    written = []
    for row, messages in enumerate(conversations):
        try:
            written.append(_write(tokenizer, messages, template, learn))
        except FinetuneError as error:
            raise RowError(row, str(error)) from error
    ids, places = _tokenize(tokenizer, [row.text for row in written])
    prompts, _ = _tokenize(tokenizer, [row.prompt for row in written])
    learned = [_learned(row, found) for row, found in zip(written, places, strict=True)]
    pairs = enumerate(zip(ids, prompts, strict=True))
    otherwise = tuple(index for index, (row, prompt) in pairs if row[: len(prompt)] != prompt)
    return EncodedText(ids, learned, [row.bytes for row in written], otherwise)


def prompt_of(tokenizer: Any, messages: Sequence[Message], template: str) -> list[int]:
    """Return the ids that ask for a conversation's last message of the assistant: all before it, and its beginning.

    They are how the row of `encode_conversations` begins, but for the rows that it says are `asked_otherwise`. Where
    the conversation does not end with the assistant, the whole of it is answered.
    """
    text = render(tokenizer, _before_answer(messages), template, asking=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def prompts_of(tokenizer: Any, conversations: Sequence[Sequence[Message]], template: str) -> list[list[int]]:
    """Return `prompt_of` for each conversation; raise RowError for one that the template refuses."""
    found = []
    for row, messages in enumerate(conversations):
        try:
            found.append(prompt_of(tokenizer, messages, template))
        except FinetuneError as error:
            raise RowError(row, str(error)) from error
    return found


def _before_answer(messages: Sequence[Message]) -> Sequence[Message]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _write(tokenizer: Any, messages: Sequence[Message], template: str, learn: LearnTurns) -> _Written:
    whole = render(tokenizer, messages, template)
    answered = messages[-1]["role"] == "assistant"
    prompt = render(tokenizer, _before_answer(messages), template, asking=True) if answered else ""
    if learn == "all":
        return _Written(whole, prompt, _content_bytes(messages, [whole] * len(messages)), [(0, len(whole))])
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    answers = answers[-1:] if learn == "last" else answers
    said = [messages[index] for index in answers]
    spans, difference = answer_spans(tokenizer, messages, template, whole, answers)
    if not difference:
        return _Written(whole, prompt, _content_bytes(said, [whole[slice(*span)] for span in spans]), spans)
    if not has_marks(template):
        advice = "Name another template." if learn == "last" else "Learn only the last turn, or name another template."
        raise FinetuneError(
            f"the chat template writes a prompt or an earlier turn otherwise once more follows: {difference}. {advice}"
        )
    marks = own_marks(tokenizer, messages, template, only_last=learn == "last")
    return _Written(whole, prompt, _content_bytes(said, [whole] * len(said)), [], marks)


def _content_bytes(messages: Sequence[Message], turns: Sequence[str]) -> int:
    pairs = zip(messages, turns, strict=True)
    return sum(len(as_written(message["content"], turn).encode()) for message, turn in pairs)


# -- tokens


def _require_places(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise FinetuneError(
            "model.id: a language model that learns some of its tokens needs a fast tokenizer, which says where in the "
            "text a token stands, and this model has none. Choose a model with a tokenizer.json."
        )


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[int]], list[list[Span]]]:
    """Return for each text its ids, without any that are added to it, and the characters that each stands for."""
    if not texts:
        return [], []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _learned(row: _Written, places: Sequence[Span]) -> list[int]:
    """Return for each token whether it is learned: whether it holds a character of one of the row's spans."""
    if row.marks is not None:
        return [0, *row.marks[1:]]
    learned, last = [], 0
    for start, end in places:
        # of a token of blanks alone some tokenizers keep only the end; of one that they put in there is nothing
        start = last if start == end else start
        learned.append(int(start < end and any(start < stop and end > first for first, stop in row.spans)))
        last = max(last, end)
    return [0, *learned[1:]]


# -- completions and plain text


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids that ask for a completion: the prompt's, and a begin-of-text token before them by habit.

    The habit is the tokenizer's (`add_bos_token`, or its post-processor). An end of text that it may add is left out.
    """
    start = [tokenizer.bos_token_id] if starts_with_bos(tokenizer) else []
    return [[*start, *ids] for ids in _tokenize(tokenizer, prompts)[0]]


def encode_completions(
    tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], learn: LearnText
) -> EncodedText:
    """Return each prompt's ids, its completion's and the end of text; learned is the completion with its end, or all.

    The two are tokenized apart, so that a row begins with exactly the ids of `encode_prompts`, by which a completion is
    asked for. Nothing is put between them: where a blank belongs there, it is the completion's first character (or it
    is there already, as SentencePiece's tokenizers begin every text with one).
    """
    _require_places(tokenizer)
    if tokenizer.eos_token_id is None:
        raise FinetuneError(
            "model.id: expected a tokenizer with an end-of-text token, which teaches a model where a completion ends; "
            "found none. Choose a model that has one, or train a tokenizer with one."
        )
    asked = encode_prompts(tokenizer, prompts)
    answers, _ = _tokenize(tokenizer, completions)
    ids = [[*prompt, *answer, tokenizer.eos_token_id] for prompt, answer in zip(asked, answers, strict=True)]
    if learn == "all":
        texts, asked = [prompt + answer for prompt, answer in zip(prompts, completions, strict=True)], [[]] * len(ids)
    else:
        texts = list(completions)
    headed = starts_with_bos(tokenizer)
    sizes = [_bytes(tokenizer, text, whole=bool(headed or ask)) for text, ask in zip(texts, asked, strict=True)]
    return EncodedText(ids, [_from(len(ask) or 1, row) for ask, row in zip(asked, ids, strict=True)], sizes)


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> EncodedText:
    """Return each text's ids between a start and the end of text, all learned but the start.

    The start is the begin-of-text token, or else the end-of-text token, which then stands between any two texts. It is
    there so that the first token of the text can be told from something, and is itself told from nothing; the end is
    learned so that a model knows where a text ends. A tokenizer that has neither puts nothing around a text, whose
    first token then is not learned.
    """
    _require_places(tokenizer)
    head = _head(tokenizer)
    tail = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [[*head, *row, *tail] for row in _tokenize(tokenizer, texts)[0]]
    sizes = [_bytes(tokenizer, text, whole=bool(head)) for text in texts]
    return EncodedText(ids, [_from(1, row) for row in ids], sizes)


def encode_beginnings(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids after which a text goes on, as `encode_plain` begins it."""
    return [[*_head(tokenizer), *ids] for ids in _tokenize(tokenizer, texts)[0]]


def _head(tokenizer: Any) -> list[int]:
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [] if start is None else [start]


def cut_front(ids: Sequence[int], length: int, start: int | None) -> list[int]:
    """Return ids without those at the beginning that are too many; a begin-of-text token, `start`, stays."""
    if len(ids) <= length:
        return list(ids)
    head = [start] if start is not None and ids[0] == start else []
    return [*head, *ids[len(ids) - length + len(head) :]]


def _from(start: int, ids: Sequence[int]) -> list[int]:
    """Return that a row is learned from its token `start` on."""
    return [int(place >= start) for place in range(len(ids))]


def _bytes(tokenizer: Any, text: str, *, whole: bool) -> int:
    """Return how many bytes a text has, or has after its first token, which is not learned."""
    places = [] if whole else _tokenize(tokenizer, [text])[1][0]
    return len(text[places[0][1] if places else 0 :].encode())
