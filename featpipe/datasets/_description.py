"""What a ``dataset.toml`` says, checked before anything that it names is read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from featpipe.datasets._checks import some
from featpipe.datasets._subjects import pick_subject
from featpipe.errors import DatasetError

_MEASURED = ("responses.npy", "rdms.npz", "rdms.mat", "rdms.npy")
PER_SUBJECT = ("ids", "responses", "targets", "splits")


@dataclass(frozen=True)
class TableDescription:
    """What a ``dataset.toml`` says, or what a folder without one implies."""

    base: Path
    stimuli: str
    responses: str | Mapping[str, str] | None = None
    rdms: str | Mapping[str, str] | None = None
    name: str = ""
    rows: str | None = None
    ids: str | Mapping[str, str] | None = None
    targets: str | Mapping[str, str] | None = None
    splits: str | Mapping[str, str] | None = None
    noise_ceiling: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise DatasetError(f"{str(path)!r} cannot be read as TOML ({error}).") from error
        known = [f.name for f in fields(cls) if f.name != "base"]
        _refuse_unknown(given, known, path.name)
        measured = "rdms" if "rdms" in given else "responses"
        for key in ("stimuli", measured):
            if key not in given:
                raise DatasetError(f"{path.name!r} does not say where the {key} are: add {key} = 'PATH'.")
        _check_types(given, path.name)
        _check_ceiling(given.get("noise_ceiling", {}), path.name)
        _check_rows(given, path.name)
        if "rdms" in given:
            _check_rdms(given, path.name)
        return cls(base=path.resolve().parent, **{"name": path.resolve().parent.name, **given})

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        stimuli = [name for name in ("stimuli", "stimuli.zip") if (folder / name).exists()]
        measured = [name for name in _MEASURED if (folder / name).exists()]
        if len(stimuli) != 1 or len(measured) != 1:
            there = some(sorted(path.name for path in folder.iterdir()), 8) or "nothing"
            raise DatasetError(
                f"{str(folder)!r} needs either stimuli/ or stimuli.zip, and responses.npy or RDMs in rdms.npz, "
                f"or a dataset.toml that says where they are; there is {there}."
            )
        targets, splits = (
            f"{key}.csv" if (folder / f"{key}.csv").exists() else None for key in ("targets", "splits")
        )
        said = {measured[0].partition(".")[0]: measured[0], "name": folder.resolve().name, "rows": "sorted"}
        return cls(folder, stimuli[0], targets=targets, splits=splits, **said)  # type: ignore[arg-type]

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects that some entry tells apart."""
        per_subject = [value for key in PER_SUBJECT if isinstance(value := getattr(self, key), Mapping)]
        return list(dict.fromkeys(name for value in per_subject for name in value))

    def of_subject(self, subject: str | int | None) -> tuple[dict[str, str], str | None]:
        """Return each per-subject entry as one path, and the subject's name if the description has any."""
        names = self.subjects
        chosen = pick_subject(names, subject, f"Dataset {self.name!r}") if names else None
        paths: dict[str, str] = {}
        for key in PER_SUBJECT:
            value = getattr(self, key)
            if isinstance(value, Mapping):
                if chosen not in value:
                    raise DatasetError(f"Dataset {self.name!r} has no {key} for subject {chosen!r}.")
                value = value[chosen]
            if value is not None:
                paths[key] = value
        return paths, chosen


def describe(place: str) -> TableDescription:
    path = Path(place).expanduser()
    if path.is_dir() and not (path / "dataset.toml").exists():
        return TableDescription.from_folder(path)
    file = path / "dataset.toml" if path.is_dir() else path
    if not file.exists():
        raise DatasetError(f"There is no folder or TOML file {place!r}: write table:DIR or table:FILE.toml.")
    if file.suffix != ".toml":
        raise DatasetError(f"{place!r} is neither a folder nor a .toml file.")
    return TableDescription.from_toml(file)


def _refuse_unknown(given: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in given:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise DatasetError(f"{where!r} has an unknown key {key!r}; {hint}")


def _check_types(given: Mapping[str, Any], where: str) -> None:
    for key, value in given.items():
        if key == "noise_ceiling":
            wanted, valid = "a table with file, unit, of", _is_texts(value)
        elif key == "rdms":
            wanted, valid = "a text or a table of texts per target", _is_text(value) or _is_texts(value)
        elif key in PER_SUBJECT:
            wanted, valid = "a text or a table of texts per subject", _is_text(value) or _is_texts(value)
        else:
            wanted, valid = "a text", _is_text(value)
        if not valid:
            raise DatasetError(f"In {where!r}, {key} must be {wanted}, got {value!r}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_text, value.values()))


def _check_ceiling(ceiling: Mapping[str, Any], where: str) -> None:
    _refuse_unknown(ceiling, ["file", "unit", "of"], f"{where}: noise_ceiling")
    for key, allowed in (("unit", ("fraction", "percent")), ("of", ("r2", "r"))):
        if ceiling.get(key, allowed[0]) not in allowed:
            raise DatasetError(
                f"In {where!r}, noise_ceiling.{key} must be {' or '.join(allowed)}, got {ceiling[key]!r}."
            )


def _check_rows(given: Mapping[str, Any], where: str) -> None:
    said = {"ids", "rows"} & set(given)
    if len(said) == 2 or (not said and "rdms" not in given):  # a file of RDMs may have ids inside
        came = "gives both ids and rows" if "ids" in given else "does not say which row is which image"
        raise DatasetError(
            f"{where!r} {came}. Write ids = 'FILE.csv:COLUMN' for a column with the id of each row, or "
            "rows = 'sorted' if rows follow the ids in natural order."
        )
    if given.get("rows", "sorted") != "sorted":
        raise DatasetError(f"In {where!r}, rows can only be 'sorted', got {given['rows']!r}.")


def _check_rdms(given: Mapping[str, Any], where: str) -> None:
    """Refuse what goes with responses only."""
    for key in ("responses", "targets", "noise_ceiling"):
        if key in given:
            raise DatasetError(
                f"{where!r} names both rdms and {key}, but a file describes one kind. Write a TOML file for each."
                if key == "responses"
                else f"{where!r} names both rdms and {key}, which goes with responses; leave it out."
            )
    for key in ("ids", "splits"):
        if not _is_text(given.get(key, "none")):
            raise DatasetError(f"In {where!r}, {key} must be a text: all RDMs are over the same stimuli.")
