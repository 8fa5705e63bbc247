"""YAML 1.2 files read strictly, each value with the file and line that wrote it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError, Problem, RecipeError, suggestion

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

Keys = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 100_000
MAX_DIGITS = 300
# The settings whose values name files or folders: they resolve against the folder of the file that wrote them.
PATH_SETTINGS: tuple[tuple[str, str], ...] = (("data", "source"), ("model", "id"))
# The settings whose values may be a word or a mapping, and yet are no parts with a name.
NO_PARTS = (("data", "source"), ("data", "missing"), ("data", "near_duplicates"))
# The options of augmenters that do: a table of synonyms is always a file, a model is one as `model.id` is.
AUGMENTER_PATHS = {
    "table": ("data", "source"),
    "model": ("model", "id"),
    "there": ("model", "id"),
    "back": ("model", "id"),
}

# The core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema). The parser's own tags are not used, since
# they still let some forms of YAML 1.1 through (dates, 1_000).
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Document:
    """The values of a recipe file and where each was written (`file:line`)."""

    values: dict[str, Any]
    origins: dict[Keys, str] = field(default_factory=dict)

    def origin(self, keys: Keys) -> str:
        """Return where a setting was written, or, for one that is missing, where its nearest parent was."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.origins:
                return self.origins[keys[:length]]
        return ""


def read_document(path: Path) -> Document:
    """Read a YAML file and the files that it extends; raise FinetuneError or RecipeError for what is not allowed."""
    return _read_extending(path, chain=())


def _read_extending(path: Path, chain: tuple[Path, ...]) -> Document:
    resolved = path.resolve()
    if resolved in chain:
        loop = " -> ".join(str(link) for link in (*chain, resolved))
        raise FinetuneError(f"{path}: recipes extend each other in a circle: {loop}")
    document = _read_file(path)
    parent = document.values.pop("extends", None)
    _resolve_paths(document.values, path.parent)
    if parent is None:
        return document
    where = document.origin(("extends",))
    if not isinstance(parent, str):
        raise RecipeError([Problem(where, "extends", f"expected the path of a recipe, found {parent!r}")])
    base_path = path.parent / parent
    if not base_path.is_file():
        raise RecipeError([Problem(where, "extends", f"no such file: {base_path}")])
    return merge(_read_extending(base_path, (*chain, resolved)), document)


def _read_file(path: Path) -> Document:
    text = _read_text(path)
    node = compose(text, str(path))
    if node is None:
        raise FinetuneError(f"{path}: expected a recipe (a YAML mapping), found an empty file")
    reader = _NodeReader(str(path))
    values = reader.read(node, ())
    if not isinstance(values, dict):
        reader.problems.append(Problem(f"{path}:1", "", f"expected a mapping of settings, found {values!r}"))
    if reader.problems:
        raise RecipeError(reader.problems)
    return Document(values, reader.origins)


def _read_text(path: Path) -> str:
    if not path.exists():
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise FinetuneError(f"{path}: no such recipe{near}")
    if path.is_dir():
        raise FinetuneError(f"{path}: expected a recipe file, found a folder")
    if path.stat().st_size > MAX_BYTES:
        raise FinetuneError(f"{path}: expected a recipe of at most {MAX_BYTES} bytes, found {path.stat().st_size}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FinetuneError(f"{path}: expected UTF-8 text, found other bytes at position {error.start}") from None


def compose(text: str, name: str) -> Node | None:
    """Parse YAML text into its tree of nodes; raise FinetuneError with the line of a syntax error."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise FinetuneError(f"{name}{line}: not valid YAML: {reason}") from None
    except (YAMLError, RecursionError) as error:
        raise FinetuneError(f"{name}: not valid YAML: {error}") from None
    return node


def parse_value(text: str, name: str) -> Any:
    """Return the value of one YAML text, such as the right side of `--set section.key=value`."""
    node = compose(text, name)
    if node is None:
        return None
    reader = _NodeReader(name)
    value = reader.read(node, ())
    if reader.problems:
        raise RecipeError(reader.problems)
    return value


class _NodeReader:
    """Turns YAML nodes into plain values; refuses tags, duplicate keys and aliases inside anchored content."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.origins: dict[Keys, str] = {}
        self.problems: list[Problem] = []
        self._anchored: set[int] = set()
        self._open_anchors = 0
        self._values = 0

    def read(self, node: Node, keys: Keys, line: int | None = None) -> Any:
        """Return the node's value and remember its line; an alias stands on the `line` of its key."""
        is_alias = self._is_alias(node)
        where = f"{self.name}:{(line if line is not None and is_alias else node.start_mark.line) + 1}"
        self.origins[keys] = where
        self._values += 1
        if self._values > MAX_VALUES:
            if self._values == MAX_VALUES + 1:
                self._refuse(where, keys, f"more than {MAX_VALUES} values; aliases count as often as they are used")
            return None
        if len(keys) > MAX_DEPTH:
            return self._refuse(where, keys, f"nested deeper than {MAX_DEPTH} levels")
        if is_alias:
            if self._open_anchors:  # an alias inside an anchor is how a few lines grow to gigabytes
                return self._refuse(where, keys, "an alias inside an anchored value is not allowed")
            return self._content(node, keys, where)
        self._open_anchors += bool(node.anchor)
        try:
            return self._content(node, keys, where)
        finally:
            self._open_anchors -= bool(node.anchor)

    def _is_alias(self, node: Node) -> bool:
        if not node.anchor:
            return False
        seen = id(node) in self._anchored
        self._anchored.add(id(node))
        return seen

    def _content(self, node: Node, keys: Keys, where: str) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        tag = str(node.tag) if node.tag else ""
        # Plain values carry the tags that the parser found for them; a written tag shows in the mark before the value.
        if self._has_written_tag(node, tag):
            return self._refuse(where, keys, f"tags such as {tag} are not allowed in a recipe")
        if isinstance(node, ScalarNode):
            if not node.style and len(node.value) > MAX_DIGITS and _INTEGER.fullmatch(node.value):
                return self._refuse(where, keys, f"a number of more than {MAX_DIGITS} digits")
            return str(node.value) if node.style else plain_scalar(node.value)
        if isinstance(node, SequenceNode):
            line = node.start_mark.line
            return [self.read(child, (*keys, index), line) for index, child in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        return self._mapping(node, keys)

    def _has_written_tag(self, node: Node, tag: str) -> bool:
        start = node.start_mark
        return not tag.startswith("tag:yaml.org,2002:") or _text_at(start).startswith("!")

    def _mapping(self, node: Any, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{self.name}:{key_node.start_mark.line + 1}"
            key = key_node.value
            if not isinstance(key, str):
                self._refuse(where, keys, "expected a plain name as key")
            elif key in values:
                self._refuse(where, (*keys, key), "written twice; keep one of the two")
            elif key == "<<" and not key_node.style:
                self._refuse(where, keys, "merge keys (<<) are not YAML 1.2; use `extends`")
            else:
                values[key] = self.read(value_node, (*keys, key), key_node.start_mark.line)
                self.origins[(*keys, key)] = where
        return values

    def _refuse(self, where: str, keys: Keys, message: str) -> None:
        self.problems.append(Problem(where, dotted(keys), message))


def _text_at(mark: Any) -> str:
    """Return the source text from a mark to the end of its line."""
    buffer = getattr(mark, "buffer", None)
    return "" if buffer is None else str(buffer[mark.pointer : mark.pointer + 80])


def plain_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar by the core schema of YAML 1.2: `no` and `2026-01-01` are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)", text):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if text in {".nan", ".NaN", ".NAN"} else text


def dotted(keys: Keys) -> str:
    """Return a path of keys as people write it: `data.clean[1].name`."""
    path = ""
    for key in keys:
        path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else key
    return path


def merge(base: Document, child: Document) -> Document:
    """Lay a document over the one that it extends: mappings merge, lists and parts of another name are replaced."""
    origins = dict(base.origins)
    values = _merge(base.values, child.values, origins, ())
    return Document(values, origins | child.origins)


def _merge(base: dict[str, Any], child: Mapping[str, Any], origins: dict[Keys, str], keys: Keys) -> dict[str, Any]:
    merged = dict(base)
    for key, value in child.items():
        old = merged.get(key)
        bare = isinstance(value, dict) and isinstance(old, str) and "name" not in value
        if bare and (*keys, key)[:2] not in NO_PARTS:
            old = {"name": old}  # a part that was written as its bare name
        # an empty mapping clears: merged, it would say nothing
        if (
            value
            and isinstance(value, dict)
            and isinstance(old, dict)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            merged[key] = _merge(old, value, origins, (*keys, key))
            continue
        merged[key] = value
        for stale in [path for path in origins if path[: len(keys) + 1] == (*keys, key)]:
            del origins[stale]
    return merged


def override(document: Document, assignments: list[str]) -> Document:
    """Apply `section.key=value` assignments; values are YAML, paths resolve against the working directory."""
    problems: list[Problem] = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = tuple(path.strip().split("."))
        if keys[0] == "gates" and len(keys) > 1:  # the names of gates have dots of their own
            keys = ("gates", ".".join(keys[1:]))
        if keys[:2] == ("tune", "space") and len(keys) > 2:  # and so have the settings that are searched
            keys = ("tune", "space", ".".join(keys[2:]))
        where = f"--set {assignment}"
        if not equals or not all(keys):
            problems.append(Problem(where, "", "expected section.key=value"))
            continue
        value: Any = text.strip().strip("'\"") if keys[0] == "gates" and len(keys) > 1 else parse_value(text, where)
        for key in reversed(keys):
            value = {key: value}
        _resolve_paths(value, Path.cwd())
        origins: dict[Keys, str] = {keys[:length]: where for length in range(1, len(keys) + 1)}
        merged = merge(document, Document(value, origins))
        # A section that was there before keeps its own line; only what was set is new.
        older = {path: place for path, place in document.origins.items() if path[: len(keys)] != keys}
        document = Document(merged.values, {**origins, **older})
    if problems:
        raise RecipeError(problems)
    return document


def assign(document: Document, setting: str, value: Any) -> Document:
    """Return the document with another value of a setting, given by its dotted name; a mapping is merged."""
    return merge(document, Document(_nested(setting, value)))


def _nested(setting: str, value: Any) -> dict[str, Any]:
    for key in reversed(setting.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    _resolve_searched_paths(values.get("tune"), folder)
    for keys in PATH_SETTINGS:
        section = values.get(keys[0])
        if isinstance(section, dict) and keys[1] in section:
            section[keys[1]] = _resolve_path(keys, section[keys[1]], folder)
    for operation in _augmenters(values):
        for option, keys in AUGMENTER_PATHS.items():
            if option in operation:
                operation[option] = _resolve_path(keys, operation[option], folder)
    if isinstance(values.get("metrics"), list):
        values["metrics"] = [_resolve_metric(name, folder) for name in values["metrics"]]
    if isinstance(values.get("gates"), dict):
        values["gates"] = {_resolve_metric(name, folder): bound for name, bound in values["gates"].items()}
    train = values.get("train")
    for tracker in _mappings(train, "trackers"):
        if "folder" in tracker:
            tracker["folder"] = _resolve_path(("data", "source"), tracker["folder"], folder)
    stopping = train.get("early_stopping") if isinstance(train, dict) else None
    if isinstance(stopping, dict) and "metric" in stopping:
        stopping["metric"] = _resolve_metric(stopping["metric"], folder)


def _resolve_searched_paths(tune: Any, folder: Path) -> None:
    """Make the paths among the values of `tune.space` absolute, and that of `tune.metric`."""
    if not isinstance(tune, dict):
        return
    if "metric" in tune:
        tune["metric"] = _resolve_metric(tune["metric"], folder)
    if isinstance(tune.get("space"), dict):
        tune["space"] = {
            setting: [_resolve_value(setting, value, folder) for value in given] if isinstance(given, list) else given
            for setting, given in tune["space"].items()
        }


def _resolve_value(setting: str, value: Any, folder: Path) -> Any:
    values = _nested(setting, value)
    _resolve_paths(values, folder)
    for key in setting.split("."):
        values = values[key]
    return values


def _resolve_path(keys: Keys, value: Any, folder: Path) -> Any:
    """Make the local paths in a setting's value absolute: one, a list of them, or one for each split."""
    if isinstance(value, list):
        return [_resolve_path(keys, item, folder) for item in value]
    if isinstance(value, dict):
        return {key: _resolve_path(keys, item, folder) for key, item in value.items()}
    if not isinstance(value, str) or not is_local_path(keys, value):
        return value
    return str((folder / Path(value).expanduser()).resolve())


def _augmenters(values: dict[str, Any]) -> list[dict[str, Any]]:
    data = values.get("data")
    augment = data.get("augment") if isinstance(data, dict) else None
    return _mappings(augment, "operations")


def _mappings(section: Any, setting: str) -> list[dict[str, Any]]:
    """Return the mappings in a section's list of parts."""
    parts = section.get(setting) if isinstance(section, dict) else None
    return [item for item in parts if isinstance(item, dict)] if isinstance(parts, list) else []


def _resolve_metric(name: Any, folder: Path) -> Any:
    """Make the path in `evaluate:./metric.py` absolute; the name of any other metric stays as it is."""
    if not isinstance(name, str) or not name.startswith(("evaluate:.", "evaluate:~")):
        return name
    return f"evaluate:{(folder / Path(name.removeprefix('evaluate:')).expanduser()).resolve()}"


def is_local_path(keys: Keys, text: str) -> bool:
    """Tell whether a setting's value names something on this machine; a bare model id names one on the Hub."""
    if keys == ("model", "id"):
        return text.startswith((".", "/", "~"))
    return "://" not in text and not text.startswith("hub:") and text != "-"
