"""The embedded example: generated notes of three hospitals and a public holdout.

The task is to say which department should see the patient. What makes it worth training on:

- *Negation and history.* A note names findings that the patient does not have, had once, or that
  a relative had. Counting words is right in about nine of ten notes; reading them does better.
- *Hospitals differ* in size, in what they see, in how they write and which words they use.
- *A group is harder.* Elders present more often with rare findings, of which a model has seen few
  examples, and have more of a history.
- *Something to memorise.* Some notes name their record by two rare words that say nothing about
  the label; some patients have several notes; a few labels are wrong.

Deterministic: a record depends on its seed and its hospital alone.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from core.data.clinic_words import (
    DURATIONS,
    FINDINGS,
    MAX_NUMBER,
    NAME_BEGINNINGS,
    NAME_ENDINGS,
    RARE_FINDINGS,
    RELATIVES,
    STYLES,
    Style,
    vocabulary,
)
from core.data.records import Record, RecordSource
from core.errors import DataError

# Part of the seed: raise it with every change that alters a record.
_GENERATOR_VERSION = 1

_SEXES = ("female", "male")
_AGES: Final[Mapping[str, tuple[int, int]]] = {
    "child": (2, 15),
    "adult": (16, 69),
    "elder": (70, MAX_NUMBER),
}
_MIN_WORDS, _MAX_WORDS = 8, 30

_MISLABELLED = 0.035
_VISITS = (0.7, 0.2, 0.1)  # chance of 1, 2, 3 notes of a patient
_SAME_DEPARTMENT = 0.8
_OWN_WORDING = 0.75
_RARE_FINDING: Final[Mapping[str, float]] = {"child": 0.06, "adult": 0.06, "elder": 0.65}
_SECOND_FINDING = 0.7
# Chance of 0, 1, 2 findings that do not count: who is older has more to tell.
_DISTRACTORS: Final[Mapping[str, tuple[float, float, float]]] = {
    "child": (0.72, 0.22, 0.06),
    "adult": (0.68, 0.26, 0.06),
    "elder": (0.42, 0.42, 0.16),
}
_REMARK = 0.5
_REFERENCE = 0.25


@dataclass(frozen=True)
class _Hospital:
    """Size, habits and case mix; the weights need not sum to one."""

    num_records: int
    styles: tuple[float, float, float]
    departments: tuple[float, ...]  # in the order of CLINIC_LABELS
    age_groups: tuple[float, float, float]  # child, adult, elder


CLINIC_LABELS: Final[tuple[str, ...]] = tuple(FINDINGS)
CLINIC_HOLDOUT: Final = "holdout"
_HOSPITALS: Final[Mapping[str, _Hospital]] = {
    "mercy": _Hospital(4000, (1, 0, 0), (0.34, 0.18, 0.22, 0.16, 0.10), (0.10, 0.55, 0.35)),
    "riverside": _Hospital(2500, (0, 1, 0), (0.12, 0.13, 0.20, 0.11, 0.44), (0.25, 0.55, 0.20)),
    "lakeside": _Hospital(1200, (0, 0, 1), (0.12, 0.32, 0.12, 0.34, 0.10), (0.12, 0.38, 0.50)),
    CLINIC_HOLDOUT: _Hospital(1000, (1, 1, 1), (1, 1, 1, 1, 1), (1, 1, 1)),
}
CLINIC_HOSPITALS: Final[tuple[str, ...]] = tuple(
    name for name in _HOSPITALS if name != CLINIC_HOLDOUT
)


def clinic_source(hospital: str, seed: int) -> RecordSource:
    """The records of a hospital, or the public ones of ``holdout``.

    Raises:
        DataError: There is no such hospital.
    """
    if hospital not in _HOSPITALS:
        raise DataError(
            f"expected a hospital of the embedded example, got {hospital!r}",
            hint=f"choose one of {', '.join(_HOSPITALS)}",
        )
    return _Generator(hospital, seed).records()


def clinic_vocabulary() -> tuple[str, ...]:
    """Every word that the generator can write, sorted: public, for it comes from no record."""
    return vocabulary()


Item = TypeVar("Item")


class _Dice:
    """Choices from uniform numbers only: NumPy may change how it draws anything else from them."""

    def __init__(self, name: str) -> None:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
        self._uniform = np.random.Generator(np.random.PCG64(seed)).random

    def chance(self, probability: float) -> bool:
        return float(self._uniform()) < probability

    def between(self, first: int, last: int) -> int:
        return first + int(float(self._uniform()) * (last - first + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.between(0, len(items) - 1)]

    def weighted(self, items: Sequence[Item], weights: Sequence[float]) -> Item:
        bounds = list(itertools.accumulate(weights))
        point = float(self._uniform()) * bounds[-1]
        return next(item for item, bound in zip(items, bounds, strict=True) if point < bound)

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        keys = [float(self._uniform()) for _ in items]
        return [items[index] for index in sorted(range(len(items)), key=keys.__getitem__)]


@dataclass(frozen=True)
class _Patient:
    person: str
    sex: str
    age_group: str
    age: int
    department: str


class _Generator:
    """Writes the notes of one hospital."""

    def __init__(self, hospital: str, seed: int) -> None:
        self._name = hospital
        self._hospital = _HOSPITALS[hospital]
        self._dice = _Dice(f"clinic/{_GENERATOR_VERSION}/{seed}/{hospital}")

    def records(self) -> tuple[Record, ...]:
        """All records, in no order."""
        records: list[Record] = []
        for number in itertools.count(1):
            missing = self._hospital.num_records - len(records)
            if missing == 0:
                break
            patient = self._patient(number)
            visits = self._dice.weighted((1, 2, 3), _VISITS)
            records.extend(self._visit(patient) for _ in range(min(visits, missing)))
        return tuple(self._dice.shuffled(records))

    def _patient(self, number: int) -> _Patient:
        age_group = self._dice.weighted(tuple(_AGES), self._hospital.age_groups)
        return _Patient(
            person=f"{self._name}-{number:05d}",
            sex=self._dice.pick(_SEXES),
            age_group=age_group,
            age=self._dice.between(*_AGES[age_group]),
            department=self._department(),
        )

    def _department(self) -> str:
        return self._dice.weighted(CLINIC_LABELS, self._hospital.departments)

    def _visit(self, patient: _Patient) -> Record:
        same = self._dice.chance(_SAME_DEPARTMENT)
        department = patient.department if same else self._department()
        wrong = self._dice.chance(_MISLABELLED)
        return Record(
            text=self._note(patient, department),
            label=self._other(department) if wrong else department,
            person=patient.person,
            groups={"sex": patient.sex, "age_group": patient.age_group},
        )

    def _other(self, department: str) -> str:
        return self._dice.pick([label for label in CLINIC_LABELS if label != department])

    def _note(self, patient: _Patient, department: str) -> str:
        """Eight to thirty words: the opening, then clauses in any order as long as they fit."""
        habit = self._dice.weighted(range(len(STYLES)), self._hospital.styles)
        style = STYLES[habit]
        note = [self._opening(style, patient, self._finding(patient, department, habit))]
        for clause in self._dice.shuffled(self._clauses(patient, department, habit)):
            if _num_words([*note, clause]) <= _MAX_WORDS:
                note.append(clause)
        for remark in self._dice.shuffled(style.remarks):
            if _num_words(note) >= _MIN_WORDS:
                break
            note.append(remark)
        return " ".join(_capitalised(clause) for clause in note)

    def _clauses(self, patient: _Patient, department: str, habit: int) -> list[str]:
        style, dice = STYLES[habit], self._dice
        clauses = []
        if dice.chance(_SECOND_FINDING):
            finding = self._finding(patient, department, habit)
            clauses.append(dice.pick(style.second).format(finding=finding))
        for _ in range(dice.weighted((0, 1, 2), _DISTRACTORS[patient.age_group])):
            clauses.append(self._distractor(patient, department, habit))
        if dice.chance(_REMARK):
            clauses.append(dice.pick(style.remarks))
        if dice.chance(_REFERENCE):
            clauses.append(style.reference.format(first=self._word(), second=self._word()))
        return clauses

    def _opening(self, style: Style, patient: _Patient, finding: str) -> str:
        duration = self._dice.pick(DURATIONS).format(count=self._dice.between(2, 9))
        return self._dice.pick(style.opening).format(
            age=patient.age,
            person=style.people[patient.age_group, patient.sex],
            finding=finding,
            duration=duration,
        )

    def _finding(self, patient: _Patient, department: str, habit: int) -> str:
        if self._dice.chance(_RARE_FINDING[patient.age_group]):
            return self._dice.pick(RARE_FINDINGS[department])
        wordings = self._dice.pick(FINDINGS[department])
        return wordings[habit] if self._dice.chance(_OWN_WORDING) else self._dice.pick(wordings)

    def _distractor(self, patient: _Patient, department: str, habit: int) -> str:
        """A finding of another department that is absent, past, or a relative's."""
        style, dice = STYLES[habit], self._dice
        finding = self._finding(patient, self._other(department), habit)
        clause = dice.pick(dice.weighted((style.negated, style.past, style.family), (3, 1, 1)))
        return clause.format(finding=finding, relative=dice.pick(RELATIVES))

    def _word(self) -> str:
        return self._dice.pick(NAME_BEGINNINGS) + self._dice.pick(NAME_ENDINGS)


def _num_words(clauses: Sequence[str]) -> int:
    return sum(len(clause.split()) for clause in clauses)


def _capitalised(clause: str) -> str:
    return clause[0].upper() + clause[1:]
