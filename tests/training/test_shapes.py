"""Shapes alone: every byte is counted, once, as long as its tensor is alive, and none of it is allocated."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch
from torch import nn

from finetune.training.shapes import Shapes

WEIGHTS = (4 * 8 + 8 + 8 * 3 + 3) * 4  # of the model below, in bytes


def two_layers() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def filled(model: nn.Module) -> tuple[nn.Module, Shapes]:
    shapes = Shapes()
    shapes.fill(model)
    return model, shapes


def test_what_a_step_holds_is_what_one_counts_by_hand() -> None:
    model, shapes = filled(two_layers())
    assert shapes.live_bytes == WEIGHTS
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with shapes.watch():
        given = torch.ones(5, 4)
        loss = model(given).square().sum()
        # alive: what was given, the second layer's input and output, which are squared, and the loss
        assert shapes.live_bytes == WEIGHTS + 4 * (5 * 4 + 5 * 8 + 5 * 3 + 1)
        # at the most: the first layer's output beside what ReLU makes of it
        assert shapes.peak_bytes == WEIGHTS + 4 * (5 * 4 + 2 * 5 * 8)
        loss.backward()
        assert shapes.live_bytes == 2 * WEIGHTS + 4 * (5 * 4 + 1), "gradients came, activations went"
        optimizer.step()
        steps = 4 * 4  # a number for each of four parameters
        assert shapes.live_bytes == 4 * WEIGHTS + steps + 4 * (5 * 4 + 1)
        optimizer.zero_grad()
        del loss, given
    assert shapes.live_bytes == 3 * WEIGHTS + steps
    assert [tuple(state["exp_avg"].shape) for state in optimizer.state.values()] == [(8, 4), (8,), (3, 8), (3,)]


def test_a_peak_is_that_since_watching_began() -> None:
    model, shapes = filled(two_layers())
    with shapes.watch():
        model(torch.ones(500, 4))
    high = shapes.peak_bytes
    with shapes.watch():
        assert shapes.peak_bytes == shapes.live_bytes == WEIGHTS
        model(torch.ones(5, 4))
    assert WEIGHTS < shapes.peak_bytes < high


def test_what_is_freed_is_counted_no_more_and_views_are_no_second_time() -> None:
    model, shapes = filled(two_layers())
    with shapes.watch():
        kept = model(torch.ones(5, 4)).detach()
        view = kept.T[:2]
        assert shapes.live_bytes == WEIGHTS + 5 * 3 * 4
        del kept
        assert shapes.live_bytes == WEIGHTS + 5 * 3 * 4, "the view holds it"
        del view
        assert shapes.live_bytes == WEIGHTS
    del model
    gc.collect()
    assert shapes.live_bytes == 0


def test_tied_parameters_are_counted_once_and_stay_tied() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"embeddings": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    model["head"].weight = model["embeddings"].weight
    _, shapes = filled(model)
    assert model["head"].weight is model["embeddings"].weight
    assert shapes.live_bytes == 10 * 4 * 4


def test_types_shapes_and_what_is_frozen_stay_as_they_are() -> None:
    model = two_layers().to(torch.bfloat16)
    model[0].requires_grad_(requires_grad=False)
    before = [(p.shape, p.dtype, p.requires_grad) for p in model.parameters()]
    _, shapes = filled(model)
    assert [(p.shape, p.dtype, p.requires_grad) for p in model.parameters()] == before
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    assert shapes.live_bytes == WEIGHTS // 2


def test_buffers_of_whole_numbers_stay_numbers() -> None:
    model = nn.Module()
    model.register_buffer("real", torch.arange(3))
    model.register_buffer("empty", torch.zeros(4, dtype=torch.long, device="meta"))
    model.register_buffer("floating", torch.zeros(5, device="meta"))
    model.register_buffer("none", None)
    filled(model)
    assert model.real.tolist() == [0, 1, 2]
    assert model.empty.tolist() == [0, 0, 0, 0]
    assert (model.floating.shape, model.floating.device.type) == ((5,), "cpu")


def test_a_mask_with_content_gives_as_many_places_as_are_true() -> None:
    model, shapes = filled(two_layers())
    wanted = torch.tensor([[True, False, True], [False, False, True]])
    with shapes.watch():
        logits = model(torch.ones(2, 3, 4))
        assert logits[wanted].shape == (3, 3)
        assert logits[wanted & torch.tensor([True, True, False])].shape == (1, 3)
        assert logits[0, wanted[0]].shape == (2, 3)
        assert logits[torch.zeros_like(wanted)].shape == (0, 3)
        written = logits.detach().clone()
        written[wanted] = 0.0
        assert written.shape == (2, 3, 3)


def test_numbers_are_real_and_what_is_asked_of_shapes_is_one() -> None:
    model, shapes = filled(two_layers())
    with shapes.watch():
        logits = model(torch.ones(2, 4))
        assert int(torch.tensor([3, 4]).sum()) == 7, "whole numbers are computed"
        assert float(logits.detach().sum()) == 1.0
        assert int(logits.argmax()) == 1
        assert float(nn.functional.cross_entropy(logits.detach(), torch.tensor([0, 2]))) == 1.0


def test_a_model_too_large_for_any_memory_is_run_forward_and_backward() -> None:
    width = 100_000
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(5)])
    before = psutil.Process().memory_info().rss
    _, shapes = filled(model)
    with shapes.watch():
        model(torch.ones(2, width)).sum().backward()
    assert shapes.live_bytes == 2 * 5 * width**2 * 4, "50 billion parameters and their gradients"
    assert psutil.Process().memory_info().rss - before < 1e9


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_tiny_bert_keeps_what_one_counts_by_hand(dropout: float) -> None:
    """One layer without attention's own kernel, so that every tensor that is kept can be named."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput

    config = BertConfig(hidden_size=16, intermediate_size=32, hidden_dropout_prob=dropout)
    with torch.device("meta"):
        wide, narrow = BertIntermediate(config), BertOutput(config)
    model, shapes = filled(nn.ModuleList([wide, narrow]).train())
    weights = 4 * (16 * 32 + 32 + 32 * 16 + 16 + 2 * 16)
    assert shapes.live_bytes == weights
    with shapes.watch():
        given = torch.ones(3, 7, 16)
        loss = narrow(wide(given), given).sum()
        places = 3 * 7
        kept = {
            "given": 16 * 4,
            "before GELU": 32 * 4,
            "after GELU": 32 * 4,
            "noise of dropout": 16 * 4 if dropout else 0,  # a processor's is of floats
            "before the norm": 16 * 4,
            "mean and deviation": 2 * 4,
        }
        assert shapes.live_bytes == weights + places * sum(kept.values()) + 4
        loss.backward()
        gradients = sum(p.grad.numel() * 4 for p in model.parameters() if p.grad is not None)
        assert gradients == weights
