"""SQuAD's own file (Rajpurkar et al. 2016; 2018 for questions without an answer), as annotation tools write it too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.data.rows import Record
from finetune.data.sources.files import SourceFile
from finetune.data.sources.json_lines import json_
from finetune.registry import sources


@sources.register("squad", written_in="json")
def squad(file: SourceFile) -> Iterator[Record]:
    """SQuAD's nested JSON, a row for each question: `context`, `question`, `answers`, `title` and `id`.

    A row's line is the number of its question in the file. `is_impossible` questions have no answers, whatever is said
    to be plausible; a question of which the file says neither has no `answers` at all. What is no article, paragraph
    or question is a row that cannot be read. Raise FinetuneError for a file that is no JSON, or has no array `data`.
    """
    for number, (values, unreadable) in enumerate(_questions(file), start=1):
        yield Record(number, values, unreadable)


def _questions(file: SourceFile) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each question as a row, or the reason why something cannot be read."""
    for article in json_(file, field="data"):
        if article.unreadable:
            yield {}, article.unreadable
            continue
        for paragraph in _listed(article.values, "paragraphs"):
            if paragraph is None:
                yield {}, "not_a_paragraph_of_squad"
                continue
            for question in _listed(paragraph, "qas"):
                if question is None:
                    yield {}, "not_a_question_of_squad"
                else:
                    yield _row(article.values, paragraph, question), ""


def _listed(values: Mapping[str, Any], name: str) -> list[Mapping[str, Any] | None]:
    """Return the objects of a list that an object has; None for what is none."""
    found = values.get(name)
    return [item if isinstance(item, dict) else None for item in (found if isinstance(found, list) else [None])]


def _row(article: Mapping[str, Any], paragraph: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question as a row; what it lacks is missing there too."""
    row = {"context": paragraph.get("context"), "question": question.get("question")}
    if question.get("is_impossible") is True:
        row["answers"] = []
    elif "answers" in question:
        row["answers"] = question["answers"]
    return {**row, "title": article.get("title"), "id": question.get("id")}
