"""Chat templates: how a conversation is written as one text, by the names of known formats, and who says what in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import FinetuneError, nearest

Message = dict[str, str]  # role and content
Span = tuple[int, int]  # the first character, and the one behind the last


@dataclass(frozen=True)
class ChatTemplate:
    """A template in Jinja, the tokens that its markers want to be, and where the format was described or published.

    It reads `messages`, `add_generation_prompt`, `bos_token` and `eos_token`, as transformers' templates do.
    """

    text: str
    tokens: tuple[str, ...]
    source: str


_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

_LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Gemma and Mistral know turns of two speakers only: what the system says stands before the user's first words
_TWO_SPEAKERS = """\
{{- bos_token }}
{%- set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}
{%- for message in turns %}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('after what the system says, the user and the assistant must take turns') }}
    {%- endif %}
    {%- set content = (system if loop.first else '') + message['content']WHITESPACE %}
    {%- if message['role'] == 'user' %}
        {{- USER }}
    {%- else %}
        {{- ASSISTANT }}
    {%- endif %}
{%- endfor %}"""

_GEMMA = (
    _TWO_SPEAKERS.replace("WHITESPACE", " | trim")
    .replace("USER", "'<start_of_turn>user\\n' + content + '<end_of_turn>\\n'")
    .replace("ASSISTANT", "'<start_of_turn>model\\n' + content + '<end_of_turn>\\n'")
    + "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)

_MISTRAL = (
    _TWO_SPEAKERS.replace("WHITESPACE", "")
    .replace("USER", "' [INST] ' + content + ' [/INST]'")
    .replace("ASSISTANT", "' ' + content + eos_token")
)

_ZEPHYR = """\
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}"""

# Before an answer stands a blank, and before that the question ends: most tokenizers join a blank to the word behind it
_PLAIN = """\
{%- for message in messages %}
    {{- message['role'] | capitalize + ': ' + message['content'] }}
    {{- (eos_token if message['role'] == 'assistant' else '') + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}"""

TEMPLATES: Mapping[str, ChatTemplate] = {
    "chatml": ChatTemplate(
        _CHATML, ("<|im_start|>", "<|im_end|>"), "OpenAI's Chat Markup Language (2023), as Qwen's models use it"
    ),
    "llama-3": ChatTemplate(
        _LLAMA_3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "Meta's prompt format of Llama 3 (2024); the blanks around a message are taken away, as in its own template",
    ),
    "gemma": ChatTemplate(
        _GEMMA,
        ("<start_of_turn>", "<end_of_turn>"),
        "Google's formatting of Gemma (2024), with the system's words before the user's first, as Gemma 3 has it; the "
        "blanks around a message are taken away, as in its own template",
    ),
    "mistral": ChatTemplate(
        _MISTRAL, (), "Mistral AI's 'v1' format, of Mistral 7B Instruct v0.2 (2023): its markers are ordinary text"
    ),
    "zephyr": ChatTemplate(
        _ZEPHYR, (), "Hugging Face's Zephyr 7B beta (Tunstall et al. 2023): its markers are ordinary text"
    ),
    "plain": ChatTemplate(
        _PLAIN, (), "ours, for base models and models from scratch: a name and a colon, end of text after an answer"
    ),
}


def wanted_tokens(name: str) -> tuple[str, ...]:
    """Return which tokens a named template wants a tokenizer to have; without them its markers are ordinary text.

    Where they are added, a model has to learn their embeddings: an adapter that leaves these as they are cannot.
    """
    return _named(name).tokens


def template_of(tokenizer: Any, name: str | None) -> str:
    """Return the named template, or the tokenizer's own, in Jinja; raise FinetuneError if there is none.

    A tokenizer that puts a begin-of-text token before every text has a model that has never read without it, so a named
    template that writes none gets one. The tokenizer's own template is taken as it is.
    """
    if name is None:
        return _own(tokenizer)
    text = _named(name).text
    if "eos_token" in text and tokenizer.eos_token is None:
        raise FinetuneError(
            f"chat template {name}: expected a tokenizer with an end-of-text token, which ends what the assistant "
            f"says; found none. Choose a template with a marker of its own: {_names(without_eos=True)}."
        )
    if "bos_token" not in text and starts_with_bos(tokenizer):
        return "{{- bos_token }}" + text
    return text


def starts_with_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer puts its begin-of-text token before every text (`add_bos_token`, or a template)."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _own(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # it has none, or several without a default
        raise FinetuneError(
            "chat template: expected a tokenizer with a chat template of its own, found one without. Name one of: "
            f"{_names()}."
        ) from None


def _named(name: str) -> ChatTemplate:
    if name not in TEMPLATES:
        raise FinetuneError(
            f"chat template: expected one of {_names()}; found {name!r}. {nearest(name, TEMPLATES)}Without a name, the "
            "tokenizer's own is used."
        )
    return TEMPLATES[name]


def _names(*, without_eos: bool = False) -> str:
    return ", ".join(name for name, made in TEMPLATES.items() if not (without_eos and "eos_token" in made.text))


# -- what a template writes


def render(tokenizer: Any, messages: Sequence[Message], template: str, *, asking: bool = False) -> str:
    """Return messages as a template writes them, with the beginning of an answer if one is asked for.

    The template runs in transformers' sandbox; where it refuses the messages, FinetuneError is raised.
    """
    from jinja2.exceptions import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=asking
            )
        )
    # whatever a template out of a checkpoint trips over
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise FinetuneError(
            f"the chat template refuses it: {str(error).rstrip('.')}. Change the messages, or name another template: "
            f"{_names()}."
        ) from error


def end_marker(tokenizer: Any, template: str) -> str:
    """Return what a template writes after the assistant's words: where it comes, writing has to stop.

    It need not be the tokenizer's end-of-text token, by which alone a model's `generate` stops by itself.
    """
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    behind = render(tokenizer, messages, template).rpartition("answer")[2]
    return behind.strip() or behind


def answer_spans(
    tokenizer: Any, messages: Sequence[Message], template: str, whole: str, answers: Sequence[int]
) -> tuple[list[Span], str]:
    """Return where `answers` (indices of the assistant's messages) stand in the whole that the template writes.

    A turn is what the conversation up to it has more than the prompt for it, so it has to be that each of them is how
    the next one begins. Where a template rewrites earlier turns, there are no spans, and it is said what differs.
    """
    spans = []
    for index in answers:
        before = render(tokenizer, messages[:index], template, asking=True)
        until = render(tokenizer, messages[: index + 1], template) if index + 1 < len(messages) else whole
        for shorter, longer in ((before, until), (until, whole)):
            if not longer.startswith(shorter):
                return [], _difference(shorter, longer)
        turn = until[len(before) :]
        spans.append((len(before), len(before) + _turn_length(turn, messages[index]["content"])))
    return spans, ""


def has_marks(template: str) -> bool:
    """Tell whether a template marks by `{% generation %}` what the assistant says."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def own_marks(tokenizer: Any, messages: Sequence[Message], template: str, *, only_last: bool) -> list[int]:
    """Return for each token whether the template marks it (1) or not (0), in all of its turns or the last."""
    marks: list[int] = tokenizer.apply_chat_template(
        list(messages), chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    if only_last and 1 in marks:
        end = len(marks) - marks[::-1].index(1)
        start = end - [*marks[:end][::-1], 0].index(0)
        marks = [int(start <= place < end) for place in range(len(marks))]
    return marks


def as_written(content: str, text: str) -> str:
    """Return what a message says as it stands in a text: many templates take away the blanks around it."""
    return content if content in text else content.strip()


def _turn_length(turn: str, content: str) -> int:
    """Return how long a turn is with its marker, and without the white space behind that."""
    before, found, behind = turn.partition(as_written(content, turn))
    behind = behind if found else before
    if not behind:
        raise FinetuneError(
            "the chat template writes nothing after what the assistant says, so that a model would not learn to stop. "
            f"Name another template: {_names()}."
        )
    return len(turn.rstrip()) if behind.strip() else len(turn)  # the white space may itself be the marker


def _difference(expected: str, found: str) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(expected), len(found)))
    around = slice(max(0, place - 20), place + 30)
    return f"expected {expected[around]!r}, found {found[around]!r}"
