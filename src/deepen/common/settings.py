"""YAML files that people write: read them, override keys, check them against a schema."""

import copy
import re
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from deepen.common.bounded import MOST_DIGITS, MOST_LEVELS, read_text, too_deep
from deepen.common.errors import DeepenError
from deepen.common.files import write_whole

Tree = dict[str, Any]
"""What a YAML file holds: keys to values, lists and further trees."""
_MOST_SHOWN = 80
"""Characters of a value that an error shows."""
ModelT = TypeVar("ModelT", bound=BaseModel)

_MOST_BYTES, _MOST_PARTS = 2**20, 10_000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TEXT = "tag:yaml.org,2002:str"


class Settings(BaseModel):
    """Base of what is read from YAML: immutable; unknown keys, infinity and NaN are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML with 1e-3 as a number, as in YAML 1.2, and without silently repeated keys.

    A date is a text: nothing here asks for one.
    """

    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes what ``_Loader`` reads back: a text that looks like 1e-3 is quoted."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Tree:
    """Read a mapping, refusing a key that stands there twice."""
    loader.flatten_mapping(node)
    tree: Tree = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if key in tree:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} stands there twice", key_node.start_mark
            )
        tree[key] = loader.construct_object(value_node, deep=True)
    return tree


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: str | Path) -> Tree:
    """Read a YAML file that holds keys and values.

    Raises:
        DeepenError: It is missing, not YAML, or not keys and values.
    """
    name = repr(str(path))
    tree = _parse(read_text(path, _MOST_BYTES), name)
    if not isinstance(tree, dict):
        raise DeepenError(f"{name} holds no keys and values; see examples/ for the form.")
    return tree


def write_yaml(path: Path, tree: Tree) -> None:
    """Write a tree so that ``read_yaml`` reads the same one."""
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_whole(path, text)


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Return a copy of a tree with some values replaced.

    Args:
        tree: Keys and values.
        overrides: Each ``dotted.key=value``, the value as YAML reads it; a number in the dotted
            key is a place in a list.

    Raises:
        DeepenError: An override is not of that form, or leads through a value that has no keys.
    """
    changed = copy.deepcopy(tree)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys) or len(keys) > MOST_LEVELS:
            raise DeepenError(
                f"Override {_shortened(override)} is not of the form key=value, for example "
                f"training.learning_rate=1e-4."
            )
        _assign(
            changed, keys, _parse(text, f"the value of override {_shortened(override)}"), override
        )
    return changed


def _assign(tree: Tree, keys: Sequence[str], value: object, override: str) -> None:
    """Set one value deep in a tree, making the mappings on the way."""
    place: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list) and re.fullmatch(r"\d{1,9}", key) and int(key) < len(place):
            step: Any = int(key)
        elif isinstance(place, dict):
            step = key
            if not last and place.get(key) is None:
                place[key] = {}
        else:
            raise DeepenError(
                f"Override {_shortened(override)} does not fit: "
                f"{_shortened('.'.join(keys[:depth]))} has no {_shortened(key)}."
            )
        if last:
            place[step] = value
        else:
            place = place[step]


def differences(
    old: Tree, new: Tree, without: Collection[str] = (), prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield every dotted key in which two trees differ, sorted, with both of its values.

    Args:
        old: Keys and values.
        new: Keys and values; a key that one of the two lacks is ``None`` there.
        without: Dotted keys that do not matter.
        prefix: What stands before these trees' own keys.
    """
    for key in sorted(old.keys() | new.keys()):
        before, after, dotted = old.get(key), new.get(key), prefix + key
        if dotted in without:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, without, f"{dotted}.")
        elif before != after:
            yield dotted, before, after


def _parse(text: str, name: str) -> Any:  # noqa: ANN401 (whatever the YAML holds)
    """Read YAML text."""
    try:
        _check_bounds(text, name)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise DeepenError(f"YAML cannot read {name} ({problem}{where}); correct it.") from None
    except (ValueError, OverflowError):
        raise DeepenError(f"YAML cannot read {name} (a bad number); correct it.") from None


def _check_bounds(text: str, name: str) -> None:
    """Refuse YAML that would take all memory, or that asks for more than texts and numbers.

    Aliases count as often as what they name: nine lines of nine of them are a billion parts.

    Raises:
        DeepenError: It is nested too deep, or has too many parts.
        yaml.YAMLError: A number is too long, or a value has a tag.
    """
    sizes: dict[str | None, int] = {}  # anchor → parts
    named, open_ones = [], [0]  # anchors and parts of what is open
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in named:
                raise yaml.MarkedYAMLError(None, None, "an alias of itself", event.start_mark)
            open_ones[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
            sizes[event.anchor] = 1
            open_ones[-1] += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            _check_tag(event)
            named.append(event.anchor)
            open_ones.append(1)
        elif isinstance(event, yaml.CollectionEndEvent):
            sizes[named.pop()] = parts = open_ones.pop()
            open_ones[-1] += parts
        if len(open_ones) > MOST_LEVELS:
            raise too_deep(name)
        if sum(open_ones) > _MOST_PARTS:
            raise DeepenError(f"{name} has more than {_MOST_PARTS:,} parts; check what it is.")


def _check_scalar(event: yaml.ScalarEvent) -> None:
    """Refuse a value with a tag, and a number that is too long."""
    _check_tag(event)
    if len(event.value) > MOST_DIGITS and event.implicit[0]:
        tag = _Loader("").resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag in _NUMBERS:
            raise yaml.MarkedYAMLError(
                None, None, f"a number of {len(event.value):,} digits", event.start_mark
            )


def _check_tag(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
    """Refuse a tag other than a text's: a value says itself what it is."""
    if event.tag not in (None, "!", _TEXT):
        raise yaml.MarkedYAMLError(
            None, None, f"tags such as {event.tag!r} are not read", event.start_mark
        )


def validate(model_class: type[ModelT], tree: Tree, source_name: str) -> ModelT:
    """Check a tree against a schema.

    Args:
        model_class: The schema.
        tree: Keys and values.
        source_name: What to call the tree in an error, for example the file's name.

    Raises:
        DeepenError: A key is unknown or missing, or a value does not fit.
    """
    try:
        return model_class.model_validate(tree)
    except ValidationError as error:
        # A union reports every branch; the branch that got furthest is the one that was meant,
        # and of those that got as far one whose type fits.
        meant = max(
            error.errors(),
            key=lambda p: (
                p["type"] == "extra_forbidden",
                len(p["loc"]),
                not p["type"].endswith("_type"),
            ),
        )
        raise DeepenError(_sentence(model_class, meant, source_name)) from None


def _sentence(model_class: type[BaseModel], problem: ErrorDetails, source: str) -> str:
    """Say what is wrong with one key."""
    models, keys = _walk(model_class, problem["loc"])
    dotted, parent = ".".join(keys), "".join(f"{key}." for key in keys[:-1])
    if problem["type"] == "extra_forbidden":
        return f"Unknown key {dotted!r} in {source}; {_hint(model_class, models, keys)}"
    if problem["type"] == "missing":
        return f"{source} lacks the key {dotted!r}; add it."
    reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "value_error":
        place = f"{dotted!r} in {source}" if keys else source
        return f"{place} is not usable: {reason}."
    reason = reason[0].lower() + reason[1:]
    given = _shortened(problem["input"])
    return f"{parent + keys[-1]!r} in {source} cannot be {given}: {reason}."


def _shortened(value: object) -> str:
    """Show a value, but not all of a long one."""
    shown = repr(value)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"


def _hint(model_class: type[BaseModel], models: list[type[BaseModel]], keys: list[str]) -> str:
    """Name the valid key that an unknown one may have meant."""
    known = list(dict.fromkeys(name for model in models for name in model.model_fields))
    parent = "".join(f"{key}." for key in keys[:-1])
    if near := get_close_matches(keys[-1], known, n=1, cutoff=0.7):
        return f"did you mean {parent + near[0]!r}?"
    elsewhere = [place for place in _places(model_class) if place.split(".")[-1] == keys[-1]]
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    if near := get_close_matches(keys[-1], known, n=1, cutoff=0.5):
        return f"did you mean {parent + near[0]!r}?"
    return f"choose one of: {', '.join(known)}."


def _walk(
    model_class: type[BaseModel], loc: Sequence[int | str]
) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow an error's location: the schemas that its last key belongs to, and its real keys.

    pydantic mixes the names of a union's branches into the location; they are left out.
    """
    models: list[type[BaseModel]] = [model_class]
    keys: list[str] = []
    for index, entry in enumerate(loc):
        fields = [model.model_fields[entry] for model in models if entry in model.model_fields]
        last = index == len(loc) - 1
        if isinstance(entry, int) or last or fields:
            branch = isinstance(entry, str) and not fields and not models
            if not branch:
                keys.append(str(entry))
        if fields and not last:
            models = [m for field in fields for m in _models_in(field.annotation)]
    return models, keys


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 (any type)
    """Find the schemas inside a type such as ``list[Arm | str] | None``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _places(model_class: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a schema."""
    for name, field in model_class.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from _places(inner, f"{prefix}{name}.")
