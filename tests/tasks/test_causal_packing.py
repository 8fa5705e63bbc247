"""Rows that share sequences in training: each is learned as if it stood alone, or the family is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers

from finetune.artifacts import feature_table
from finetune.data.tokenization import Limits
from finetune.errors import FinetuneError
from finetune.tasks import check_model, open_task
from tests.tasks.test_causal_lm import NO_TARGET, encoded, learned, model_of, texts, tokenizer_of


def world_of_packs(family: str, attention: str) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
    tokenizer = tokenizer_of(bos=family == "llama")
    task, _ = open_task("causal-lm", {"pack": True})
    model = model_of(family, len(tokenizer), attention)
    rows = [text[:60] for text in texts(9, 16, seed=9)]
    return task, tokenizer, model, list(feature_table(encoded({"text": rows}, tokenizer, Limits(64)).features))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_packed_rows_have_the_loss_and_the_gradients_of_rows_apart(family: str, attention: str) -> None:
    task, tokenizer, model, features = world_of_packs(family, attention)
    sums, counts, gradients = [], [], []
    for put_together in (task.collate, task.pack):
        batch = put_together(features, tokenizer)
        model.zero_grad()
        loss, count = task.loss(task.forward(model, batch.inputs), batch, {})
        loss.backward()
        sums.append(float(loss.detach()))
        counts.append(int(count))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert counts[0] == counts[1] == sum(len(learned(row["label_ids"])) for row in features)
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))


def test_a_pack_holds_all_rows_with_positions_of_their_own_in_sequences_no_longer_than_the_longest() -> None:
    task, tokenizer, _, features = world_of_packs("gpt2", "eager")
    batch = task.pack(features, tokenizer)
    ids, labels, positions, mask = (
        tensor.tolist()
        for tensor in (
            batch.inputs["input_ids"], batch.targets["labels"], batch.inputs["position_ids"],
            batch.inputs["attention_mask"],
        )
    )  # fmt: skip
    lengths = [len(row["input_ids"]) for row in features]
    assert len(ids[0]) == max(lengths)
    assert len(ids) < len(features)
    found = []
    for sequence, targets, places, real in zip(ids, labels, positions, mask, strict=True):
        starts = [place for place, position in enumerate(places) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
            assert places[start:end] == list(range(end - start))
            if real[start]:
                assert real[start:end] == [1] * (end - start)
                found.append((sequence[start:end], targets[start:end]))
            else:
                assert targets[start:end] == [NO_TARGET] * (end - start)
    assert sorted(found) == sorted((row["input_ids"], [*row["label_ids"][1:], NO_TARGET]) for row in features)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_row_of_a_pack_reads_another(family: str, attention: str) -> None:
    task, tokenizer, model, features = world_of_packs(family, attention)
    longest = max(len(row["input_ids"]) for row in features)
    shared = [row for row in features if len(row["input_ids"]) < longest // 2][:3]
    # one sequence as long as the longest row, and one with three rows, of which the one in the middle changes
    rows = [max(features, key=lambda row: len(row["input_ids"])), *shared]
    other = [{**row, "input_ids": [9] * len(row["input_ids"])} if row is shared[1] else row for row in rows]
    first, second = (task.pack(batch, tokenizer).inputs for batch in (rows, other))
    changed = first["input_ids"] != second["input_ids"]
    assert changed.any()
    with torch.no_grad():
        difference = (task.forward(model, first) - task.forward(model, second)).abs().amax(dim=-1)
    sequence = int(changed.any(dim=1).nonzero())
    starts = [*(first["position_ids"][sequence] == 0).nonzero().flatten().tolist(), changed.shape[1]]
    assert len(starts) > 3, "rows before and behind it in its sequence"
    own = next(span for span in pairwise(starts) if changed[sequence, slice(*span)].any())
    inside = torch.zeros_like(changed)
    inside[sequence, slice(*own)] = True
    assert float(difference[inside].max()) > 0.1
    assert float(difference[~inside].max()) < 1e-6


@pytest.mark.parametrize("loud", [False, True])
@pytest.mark.parametrize(
    ("family", "parts"),
    [("gpt2", True), ("llama", True), ("opt", False), ("bloom", False), ("jamba", False), ("openai-gpt", False)],
)
def test_a_family_that_reads_a_pack_as_one_text_is_refused(family: str, parts: bool, loud: bool) -> None:
    wanted = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 32, "ffn_dim": 32, "max_position_embeddings": 64, "word_embed_proj_dim": 16,
        "num_experts": 2, "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
        "attn_layer_period": 2, "attn_layer_offset": 1,
    }  # fmt: skip
    blank = transformers.CONFIG_MAPPING[family]()
    own = {blank.attribute_map.get(name, name): value for name, value in wanted.items()}
    config = transformers.CONFIG_MAPPING[family](**{name: own[name] for name in own if hasattr(blank, name)})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if loud and parameter.dim() > 1 else 1)
    task, _ = open_task("causal-lm", {"pack": True})
    if parts:
        check_model(task, model)
    else:
        with pytest.raises(FinetuneError, match=rf"task.pack: .*the family '{family}'.*Set task.pack: false"):
            check_model(task, model)
        check_model(open_task("causal-lm", {})[0], model)
