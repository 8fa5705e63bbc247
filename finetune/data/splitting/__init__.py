"""Splitters: which rows train the model, which choose it, and which judge it."""

from __future__ import annotations

from finetune.data.splitting.base import KEPT_FOR_TEST, SPLITS, SplitInput, check_fractions
from finetune.data.splitting.drawn import grouped, random, stratified, stratified_grouped
from finetune.data.splitting.given import by_hash, by_time, predefined

__all__ = [
    "KEPT_FOR_TEST",
    "SPLITS",
    "SplitInput",
    "by_hash",
    "by_time",
    "check_fractions",
    "grouped",
    "predefined",
    "random",
    "stratified",
    "stratified_grouped",
]
