"""Writing texts: prompts in batches of similar length, in the order in which they came, the same with the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.data.conversations import cut_front
from finetune.progress import Progress, Silent
from finetune.recipe import GenerationSection

if TYPE_CHECKING:
    import torch

# What of a checkpoint's own generation settings is part of its language; all else is for the recipe to say
LANGUAGE = (
    *("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
)


class Written(NamedTuple):
    """A text, whether the model ended it itself, and how many tokens of its prompt were cut to have room for it."""

    text: str
    finished: bool
    cut: int = 0


def configure(
    model: Any, tokenizer: Any, settings: GenerationSection, seed: int, ends: Sequence[int] = ()
) -> dict[str, Any]:
    """Give a model the recipe's generation settings, which are then saved with it; return what decides its texts.

    Of the settings that it came with stay those that belong to its language, such as the token that a decoder begins
    with, and its ends of text; beside these it has the tokenizer's, which is what is learned, and `ends`.
    """
    from transformers import GenerationConfig

    model = without_adapter(model)
    own = model.generation_config
    kept = {name: getattr(own, name) for name in LANGUAGE if getattr(own, name, None) is not None}
    known = dict.fromkeys([*_as_list(kept.get("eos_token_id")), *_as_list(tokenizer.eos_token_id), *ends])
    kept["eos_token_id"] = list(known) if len(known) > 1 else next(iter(known), None)
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "num_beams": settings.beams}
    if settings.min_new_tokens:
        options["min_new_tokens"] = settings.min_new_tokens
    if settings.no_repeat_ngram:
        options["no_repeat_ngram_size"] = settings.no_repeat_ngram
    if settings.repetition_penalty != 1:
        options["repetition_penalty"] = settings.repetition_penalty
    if settings.beams > 1:
        options["length_penalty"] = settings.length_penalty
    options["do_sample"] = settings.sample
    if settings.sample:
        options |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    model.generation_config = GenerationConfig(**options, **kept, pad_token_id=tokenizer.pad_token_id)
    return {**options, **({"seed": seed} if settings.sample else {})}


def write_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSection,
    *,
    seed: int,
    context: int | None = None,
    progress: Progress | None = None,
    on_piece: Callable[[str], None] | None = None,
) -> list[Written]:
    """Return what the model (which is in eval mode) writes after each prompt; the global generators stay as they were.

    `prompts` are ids. `context` is how many tokens the model can hold; a decoder's prompt is among them, and loses its
    beginning, but for a begin-of-text token, rather than that there is no room to write. Sampling draws from `seed`,
    batch after batch, so that the same prompts in the same order give the same texts. `on_piece` is told the words of
    a text as they come, text after text, but nothing of beams, which change their minds, and of several texts that
    are sampled, which would be other ones than in batches.
    """
    import torch

    model = without_adapter(model)
    configure(model, tokenizer, settings, seed)
    reads = model.config.is_encoder_decoder
    ends = _as_list(model.generation_config.eos_token_id)
    start = tokenizer.bos_token_id
    asked, rooms = _rooms(prompts, settings, context, start, reads=reads)
    if settings.beams > 1 or (settings.sample and len(prompts) > 1):
        on_piece = None
    size = 1 if on_piece else settings.batch_size
    found: list[Written | None] = [None] * len(prompts)
    with torch.random.fork_rng(), torch.no_grad(), (progress or Silent()).bar("writing", len(prompts)) as bar:
        torch.manual_seed(seed)
        for places in _batches(asked, rooms, size, in_order=on_piece is not None):
            inputs = _padded([asked[place] for place in places], tokenizer, left=not reads)
            streamer = _streamer(tokenizer, on_piece) if on_piece else None
            moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            ids = model.generate(**moved, max_new_tokens=rooms[places[0]], streamer=streamer)
            # behind what a decoder begins with, or the prompt
            written = ids[:, 1 if reads else inputs["input_ids"].shape[1] :].tolist()
            for place, row in zip(places, written, strict=True):
                text, finished = _text_of(row, ends, tokenizer)
                found[place] = Written(text, finished, len(prompts[place]) - len(asked[place]))
            bar.advance(len(places))
    assert None not in found, "every prompt was answered"
    return [one for one in found if one is not None]


def longest_room(
    model: Any, prompts: Sequence[Sequence[int]], settings: GenerationSection, context: int | None
) -> tuple[int, int]:
    """Return how many tokens a prompt has as it is read, and how many are written behind it: the longest of all."""
    reads = without_adapter(model).config.is_encoder_decoder
    asked, rooms = _rooms(prompts, settings, context, None, reads=reads)
    longest = max(zip(map(len, asked), rooms, strict=True), key=sum)
    return (max(map(len, asked)), max(rooms)) if reads else longest


def _rooms(
    prompts: Sequence[Sequence[int]],
    settings: GenerationSection,
    context: int | None,
    start: int | None,
    *,
    reads: bool,
) -> tuple[list[list[int]], list[int]]:
    """Return the prompts as they are read, and how many tokens may be written behind each."""
    new = settings.max_new_tokens
    asked = [list(prompt) if reads else _with_room(prompt, new, context, start) for prompt in prompts]
    rooms = [new if context is None else context - (1 if reads else len(ids)) for ids in asked]
    return asked, [min(room, new) for room in rooms]


def _with_room(prompt: Sequence[int], new: int, context: int | None, start: int | None) -> list[int]:
    """Return a decoder's prompt so short that it can write `new` tokens behind it, or at least half the context."""
    most = len(prompt) if context is None else max(context - new, context // 2, 1)
    return cut_front(prompt, most, start)


def without_adapter(model: Any) -> Any:
    """Return the model that peft has put adapters into: it writes with them, and its settings are the ones used."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _batches(
    prompts: Sequence[Sequence[int]], rooms: Sequence[int], size: int, *, in_order: bool
) -> Iterator[list[int]]:
    """Yield the places of prompts of similar length with the same room, so that no text depends on its company.

    The longest come first: what does not fit in memory shows at once.
    """
    places = list(range(len(prompts)))
    order = places if in_order else sorted(places, key=lambda place: (rooms[place], -len(prompts[place])))
    for _, group in itertools.groupby(order, key=lambda place: rooms[place]):
        alike = list(group)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _streamer(tokenizer: Any, on_piece: Callable[[str], None]) -> Any:
    """Return what tells of each word that `generate` writes, and of a line's end behind a text."""
    from transformers import TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_piece(text + "\n" * stream_end)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _padded(prompts: Sequence[Sequence[int]], tokenizer: Any, *, left: bool) -> dict[str, torch.Tensor]:
    """Return prompts of one length: decoders go on from the end of a prompt, so its padding comes first."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, place] = torch.tensor(prompt, dtype=ids.dtype)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _text_of(ids: Sequence[int], ends: Sequence[int], tokenizer: Any) -> tuple[str, bool]:
    """Return a row of ids as text up to its first end, and whether it has one."""
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    return tokenizer.decode(ids[:stop], skip_special_tokens=True).strip(), stop is not None


def _as_list(ids: Any) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [int(ids)]


def sample_of(rows: int, wanted: int, seed: int) -> list[int]:
    """Return the rows that are written during training, in their order: always the same with the same seed."""
    import numpy as np

    if rows <= wanted:
        return list(range(rows))
    chosen = np.random.default_rng(seed).choice(rows, size=wanted, replace=False)
    return sorted(chosen.tolist())
