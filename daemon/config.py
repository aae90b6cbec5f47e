"""Reads a configuration file and reports every problem at once, with file and line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from daemon.almanac import CalendarError, read_ics
from daemon.cabling import (
    CablingError,
    ib_leaves,
    is_ibnetdiscover,
    is_lldp,
    is_slurm,
    is_ufm,
    lldp_leaves,
    slurm_leaves,
    ufm_leaves,
)
from daemon.settings import Settings, TopologyTree

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits: systemd is told not to restart on it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration. path : keys from the top, "" = the whole file. line : 0 = of no line."""

    file: str
    line: int
    path: str
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path + ': ' if self.path else ''}{self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` lists all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


def load(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a file. Raises ConfigError with every problem found."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        remedy = f"there is no such file; `tidewarden config init --file {path}` writes one"
        raise ConfigError([Problem(str(path), 0, "", remedy)]) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else f"not UTF-8: {error}"
        raise ConfigError([Problem(str(path), 0, "", f"cannot be read: {reason}")]) from error
    return parse(text, str(path), os.environ if environ is None else environ)


def parse(text: str, file: str = "config", environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a text. Raises ConfigError with every problem found."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 0
        raise ConfigError(
            [Problem(file, line, "", f"not YAML: {getattr(error, 'problem', error)}")]
        ) from error
    problems: list[Problem] = []
    data = _build(root, "", file, environ or {}, problems) if root is not None else {}
    if not isinstance(data, dict):
        raise ConfigError([Problem(file, 1, "", f"must be a table of keys, found {type(data).__name__}")])
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems += [_problem(e, root, file) for e in error.errors()]
        raise ConfigError(sorted(problems, key=lambda p: p.line)) from None
    problems += list(_files(settings, root, file))
    problems += list(_calendars(settings, root, file))
    settings = _with_topology(settings, root, file, problems)
    if any(p.severity == "error" for p in problems):
        raise ConfigError(sorted(problems, key=lambda p: p.line))
    return settings


def _build(node: yaml.Node, path: str, file: str, environ: Mapping[str, str], problems: list[Problem]) -> Any:
    """Plain data of a YAML tree, with ${VAR} filled in and keys that stand twice reported."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        table: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = f"{path}.{key}" if path else key
            if key in table:
                problems.append(Problem(file, key_node.start_mark.line + 1, here, "this key stands twice"))
            table[key] = _build(value_node, here, file, environ, problems)
        return table
    if isinstance(node, yaml.SequenceNode):
        return [_build(n, f"{path}.{i}", file, environ, problems) for i, n in enumerate(node.value)]
    value = yaml.SafeLoader("").construct_object(node)
    return (
        _expand(value, environ, Problem(file, line, path, ""), problems) if isinstance(value, str) else value
    )


_VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")


def _expand(text: str, environ: Mapping[str, str], where: Problem, problems: list[Problem]) -> str:
    """${VAR}, ${VAR:-default}, and $$ for a dollar sign."""

    def one(match: re.Match[str]) -> str:
        if match.group(0) == "$$":
            return "$"
        name, default = match.group(1), match.group(2)
        if name in environ:
            return environ[name]
        if default is None:
            problems.append(
                Problem(
                    where.file,
                    where.line,
                    where.path,
                    f"the environment has no {name}; set it, or write ${{{name}:-default}}",
                )
            )
        return default or ""

    return _VARIABLE.sub(one, text)


def _problem(error: Any, root: yaml.Node | None, file: str) -> Problem:
    """One pydantic error in words an operator can act on."""
    keys, tag = _keys(error["loc"])
    path = ".".join(str(k) for k in keys)
    found = _shown(error.get("input"), keys)
    if error["type"] == "extra_forbidden":
        valid = _valid_keys(keys[:-1], tag)
        near = difflib.get_close_matches(str(keys[-1]), valid, 1, 0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed here: {', '.join(valid)}"
        message = f"unknown key; {hint}"
    elif error["type"] == "missing":
        message = "is missing and has no default"
    elif error["type"] == "union_tag_invalid":
        message = f"kind is {error['ctx']['tag']!r}; allowed: {error['ctx']['expected_tags']}"
    elif error["type"] == "union_tag_not_found":
        message = "kind is missing: it says what the table is about"
    elif error["type"] in ("literal_error", "enum"):
        message = f"found {found}; allowed: {error['ctx']['expected']}"
    elif error["type"] in SHAPES:
        message = f"{SHAPES[error['type']]}; found {found}"
    else:
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] != "value_error":
            message += f"; found {found}"
    return Problem(file, _line(root, keys), path, message)


SHAPES = {
    "list_type": "must be a list, each entry on a line that begins with `- `",
    "dict_type": "must be a table of keys",
    "model_type": "must be a table of keys",
    "model_attributes_type": "must be a table of keys",
}
"""Error types of pydantic -> what should stand there."""
UNIONS = (("backends",), ("notify", "channels"))
"""Tables of several kinds: behind their name or number an error's place holds the kind."""


def _keys(place: tuple[Any, ...]) -> tuple[list[Any], str]:
    """The keys of an error as they stand in the file, with the kind of the table that it is in ("" = no such table)."""
    keys = [k for k in place if k != "[key]"]
    for above in UNIONS:
        if tuple(keys[: len(above)]) == above and len(keys) > len(above) + 1:
            return keys, str(keys.pop(len(above) + 1))
    return keys, ""


def _shown(value: Any, keys: list[Any]) -> str:
    if any(word in str(k) for k in keys for word in ("secret", "token", "password", "url")):
        return "(hidden)"
    # A table may hold a secret somewhere; its name and place say enough.
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)[:80]


def _line(node: yaml.Node | None, keys: list[Any]) -> int:
    """The line of the deepest key of a path that is in the file."""
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _valid_keys(keys: list[Any], tag: str) -> list[str]:
    """Keys that may stand at a path, by walking the annotations. tag : kind of the table, where it may be of several."""
    kind: Any = Settings
    is_entry = False
    for key in keys:
        if is_entry:
            is_entry = False  # the number or name of an entry, of the kind the field says
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(key))
            annotation = field.annotation if field else None
            is_entry = get_origin(annotation) in (list, dict)
            kind = _inner(annotation, tag)
    return sorted(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _inner(kind: Any, tag: str) -> Any:
    """The model inside list[...], dict[str, ...], X | None; of several that of the kind."""
    found = _models(kind)
    return next(
        (m for m in found if tag and len(found) > 1 and tag in get_args(m.model_fields["kind"].annotation)),
        None,
    ) or (found[0] if found else None)


def _models(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models(part)]


def _files(settings: Settings, root: yaml.Node | None, file: str) -> Iterator[Problem]:
    """Files that are named and cannot be read. A missing secret is an error before the first page, not at it."""
    for keys, value in _walk(settings.model_dump(), []):
        name = str(keys[-1])
        if not name.endswith("_file") or not value:
            continue
        path = Path(value)
        try:
            is_empty = not path.read_text(encoding="utf-8").strip()
        except OSError as error:
            reason = error.strerror or str(error)
            yield Problem(
                file,
                _line(root, keys),
                ".".join(map(str, keys)),
                f"{value}: {reason}; create it readable for this user",
            )
            continue
        if is_empty:
            yield Problem(
                file, _line(root, keys), ".".join(map(str, keys)), f"{value} is empty; put the secret into it"
            )


def _calendars(settings: Settings, root: yaml.Node | None, file: str) -> Iterator[Problem]:
    """Calendar files that cannot be read, or hold what is not understood: found here, not at the start of the daemon."""
    for number, path in enumerate(settings.calendar.files):
        keys = ["calendar", "files", number]
        try:
            read_ics(Path(path))
        except CalendarError as error:
            yield Problem(file, _line(root, keys), ".".join(map(str, keys)), str(error))


def _cabled(text: str) -> dict[str, dict[str, str]] | None:
    """Places out of a text of Slurm or ibnetdiscover, None when it is neither."""
    if is_slurm(text):
        return _placed(slurm_leaves(text))
    return _placed(ib_leaves(text)) if is_ibnetdiscover(text) else None


def _placed(leaves: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {node: {"leaf": leaf} for node, leaf in leaves.items()}


def _with_topology(
    settings: Settings, root: yaml.Node | None, file: str, problems: list[Problem]
) -> Settings:
    """The settings with the nodes of the topology file; those of the configuration itself win."""
    path = settings.topology.file
    if not path:
        return settings
    where = Problem(file, _line(root, ["topology", "file"]), "topology.file", "")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        problems.append(
            replace(where, message=f"{path}: {error.strerror or error}; create it readable for this user")
        )
        return settings
    try:
        data: Any = _cabled(text)
        tree = None if data is not None else yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text) or {} if data is None else data
        if is_lldp(data):
            data = _placed(lldp_leaves(data))
        elif is_ufm(data):
            data = _placed(ufm_leaves(data))
        listed = TopologyTree.model_validate({"nodes": data})
    except yaml.YAMLError as error:
        problems.append(
            replace(where, message=f"{path} is not YAML or JSON: {getattr(error, 'problem', error)}")
        )
        return settings
    except CablingError as error:
        problems.append(Problem(path, error.line, "", str(error)))
        return settings
    except ValidationError as error:
        for found in error.errors():
            keys = list(found["loc"])[1:]
            name = ".".join(str(k) for k in keys)
            message = f"found {_shown(found.get('input'), keys)}; write NODE: {{rack: R, leaf: L, region: G}}"
            problems.append(Problem(path, _line(tree, keys), name, message))
        return settings
    nodes = {**listed.nodes, **settings.topology.nodes}
    return settings.model_copy(update={"topology": TopologyTree(file=path, nodes=nodes)})


def _walk(value: Any, keys: list[Any]) -> Iterator[tuple[list[Any], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, [*keys, key])
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _walk(inner, [*keys, i])
    else:
        yield keys, value


HIDDEN = "********"


def given(tree: Any, said: Any) -> Any:
    """The part of a tree that the file itself names. said : the settings dumped without their defaults."""
    if isinstance(tree, dict) and isinstance(said, dict):
        return {k: given(v, said[k]) for k, v in tree.items() if k in said}
    if isinstance(tree, list) and isinstance(said, list):
        return [given(a, b) for a, b in zip(tree, said, strict=True)]
    return tree


def masked(settings: Settings) -> dict[str, Any]:
    """Every key with its value as resolved, secrets and addresses with credentials hidden."""

    def mask(value: Any, name: str) -> Any:
        if isinstance(value, dict) and name in ("env", "env_vars"):
            return dict.fromkeys(value, HIDDEN)  # where programs are given their credentials
        if isinstance(value, dict):
            return {str(getattr(k, "value", k)): mask(v, str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [mask(v, name) for v in value]
        if value and (
            name in ("urls", "password", "secret", "token") or (name == "url" and "@" in str(value))
        ):
            return HIDDEN
        return value

    dumped: dict[str, Any] = mask(settings.model_dump(mode="json"), "")
    return dumped
