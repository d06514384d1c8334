"""Recipes as people write them: TOML files, changes on the command line, and mistakes.

Importing this module needs no third-party package: the help of `train` lists the built-in recipes.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from app.core.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

#: Recipes that come with the package, named without `.toml`.
BUILT_IN: Final = Path(__file__).parent / "recipes"
#: Names of version 0.1, which this version still takes: of recipes, of values of `task`, and of keys.
OLD_NAMES: Final[Mapping[str, str]] = {
    "judge": "tumour_segmenter",
    "segmentation": "segmentation2d",
    "judging": "segmentation3d",
    "data.makes": "data.targets",
    "schedule.targets": "schedule.targets_per_batch",
    "losses.judge": "losses.discriminator",
    "losses.judge_class": "losses.discriminator_class",
}


def built_in() -> dict[str, str]:
    """List the built-in recipes: their names and notes."""
    notes = {p.stem: str(tomllib.loads(p.read_text(encoding="utf-8")).get("note", "")) for p in BUILT_IN.glob("*.toml")}
    return dict(sorted(notes.items()))


def read_recipe(name: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe and all that it extends, with `section.key=value` changes.

    Its values are not checked here.

    Args:
        name: a TOML file, or a built-in recipe.

    Raises:
        UsageError: it does not exist, is no TOML, or a change is not of that form.
    """
    form = _read(Path(name), [])
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError(f"--set {change!r} is not of the form section.key=value.")
        form = _merged(form, _renamed(_nested(form, key.strip(), _value(value.strip()))))
    return _with_constants(form, Path(name).parent)


def _with_constants(form: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put the constants of `normalization.file` in the place of that key.

    So a checkpoint says them itself, wherever the file goes.

    Args:
        folder: of the recipe; the file may lie beside it.
    """
    section = form.get("normalization")
    if not isinstance(section, Mapping) or "file" not in section:
        return form
    name = Path(str(section["file"]))
    path = name if name.is_file() else folder / name
    try:
        constants = json.loads(path.read_text(encoding="utf-8"))["intensities"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UsageError(
            f"normalization.file {name} is no file of constants; make one with fit-normalization."
        ) from None
    others = {key: value for key, value in section.items() if key != "file"}
    return {**form, "normalization": {**others, "intensities": constants}}


def _read(path: Path, seen: list[Path]) -> dict[str, Any]:
    asked = path
    if path.suffix != ".toml" and not path.is_file():
        path = BUILT_IN / f"{OLD_NAMES.get(path.name, path.name)}.toml"
    if path in seen:
        raise UsageError(f"recipe {path} extends itself.")
    try:
        form = _renamed(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError:
        known = sorted(p.stem for p in BUILT_IN.glob("*.toml"))
        near = difflib.get_close_matches(asked.stem, known, 1)
        advice = f"did you mean {near[0]!r}? Give" if near else "give"
        names = ", ".join(known)
        raise UsageError(f"recipe {asked} cannot be read; {advice} a .toml file or one of {names}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is no TOML: {error}.") from None
    if (base := form.pop("extends", None)) is not None:
        neighbour = path.parent / str(base)
        return _merged(_read(neighbour if neighbour.suffix == ".toml" else Path(str(base)), [*seen, path]), form)
    return form


def _renamed(form: Mapping[str, Any]) -> dict[str, Any]:
    """Give the form with the present names of its keys and of its task."""
    renamed = {
        section: {OLD_NAMES.get(f"{section}.{key}", f".{key}").rpartition(".")[2]: v for key, v in values.items()}
        if isinstance(values, Mapping)
        else values
        for section, values in form.items()
    }
    if isinstance(task := renamed.get("task"), str):
        renamed["task"] = OLD_NAMES.get(task, task)
    return renamed


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key, {})
        merged[key] = _merged(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return merged


def _nested(form: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Give `value` under its dotted key, as sections of which none may be a value in `form`."""
    *sections, last = key.split(".")
    nested: dict[str, Any] = {last: value}
    before: Any = form
    for section in sections:
        before = before.get(section, {})
        if not isinstance(before, Mapping):
            raise UsageError(f"--set {key}: {section!r} is a value, not a section.")
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


#: How messages call what a key wants, by the beginning of pydantic's name of the error.
_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "string": "a text",
          "finite": "a finite number"}  # fmt: skip


def mistake(error: ErrorDetails, kind: type[BaseModel]) -> str:
    """Say in one sentence what is wrong with a recipe.

    Args:
        error: pydantic's.
        kind: the class of the recipe.
    """
    key, value, code = ".".join(str(p) for p in error["loc"] if isinstance(p, str)), error["input"], error["type"]
    match code:
        case "value_error":
            sentence = str(error["ctx"]["error"])
        case "extra_forbidden":
            sentence = f"unknown key {key!r}{_advice(key, kind)}"
        case "model_type" | "model_attributes_type":
            sentence = f"{key!r} is a section, not a value"
        case "literal_error":
            choices = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
            sentence = f"{key} = {value!r}; use one of {choices}"
        case "tuple_type":
            sentence = f"{key} = {value!r} is no list; write it as [{value!r}]"
        case "missing" | "too_long":
            sentence = f"{key} = {value!r} is not a list of {_length(key, kind)}"
        case _:
            sentence = f"{key} = {value!r} is not {_KINDS.get(code.partition('_')[0], 'possible')}"
    return sentence if sentence.endswith("?") else f"{sentence}."


def _length(key: str, kind: type[BaseModel]) -> int:
    """Count the values of the list that a key wants."""
    name, _, rest = key.partition(".")
    annotation: Any = kind.model_fields[name].annotation
    return _length(rest, annotation) if rest else len(get_args(annotation))


def _keys(kind: type[BaseModel], where: str = "") -> Iterator[str]:
    """List the keys of a section: those of its own sections first, with their names."""
    own = {name: field.annotation for name, field in kind.model_fields.items()}
    for name, annotation in own.items():
        if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
            yield from _keys(annotation, f"{where}{name}.")
    yield from (f"{where}{name}" for name in own)


def _advice(key: str, kind: type[BaseModel]) -> str:
    """Name the task that has an unknown key, or else the nearest known key."""
    from app.training.tasks.base import find_task, task_names

    tasks = {name: find_task(name) for name in task_names()}
    if owners := [name for name, task in tasks.items() if task is not None and key in _keys(task.recipe_type)]:
        return f"; it is for the task{'s' if len(owners) > 1 else ''} {' and '.join(owners)}"
    names = list(_keys(kind))
    # A key in the wrong section is more often meant than one that is spelt alike.
    last = key.rpartition(".")[2]
    near = [n for n in names if n.rpartition(".")[2] == last] or difflib.get_close_matches(key, names, 1, 0.5)
    if not near:
        ends = difflib.get_close_matches(last, [n.rpartition(".")[2] for n in names], 1, 0.5)
        near = [n for n in names if n.rpartition(".")[2] in ends]
    if not near:
        return f"; the nearest is {difflib.get_close_matches(key, names, 1, 0.0)[0]!r}"
    return f"; did you mean {near[0]!r}?"
