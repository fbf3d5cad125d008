from hypothesis import given
from hypothesis import strategies as st

from core.data.held_out import hold_out
from core.data.records import Record, iterate

KEY = bytes(32)
people = st.lists(st.integers(0, 30).map(str), max_size=40)


def records(persons: list[str], *, named: bool = True) -> tuple[Record, ...]:
    return tuple(
        Record(f"text {person if not named else number}", person=person if named else None)
        for number, person in enumerate(persons)
    )


@given(people, st.floats(0, 0.89))
def test_every_record_is_on_one_side_and_in_its_order(persons: list[str], share: float) -> None:
    source = records(persons)
    split = hold_out(source, share, KEY)

    members, held_out = list(iterate(split.members)), list(iterate(split.held_out))
    assert sorted(map(repr, members + held_out)) == sorted(map(repr, source))
    assert members == [record for record in source if record in members]


@given(people, st.floats(0.1, 0.8), st.booleans())
def test_another_record_moves_none(persons: list[str], share: float, named: bool) -> None:
    source = records(persons, named=named)
    alone = [hold_out((record,), share, KEY) for record in source]

    split = hold_out(source, share, KEY)
    expected = [r for r, one in zip(source, alone, strict=True) if len(one.members)]
    assert list(iterate(split.members)) == expected


@given(people)
def test_a_person_and_a_text_are_on_one_side(persons: list[str]) -> None:
    for named in (True, False):
        split = hold_out(records(persons, named=named), 0.5, KEY)
        names = [
            {record.person or record.text for record in iterate(side)}
            for side in (split.members, split.held_out)
        ]
        assert not names[0] & names[1]


def test_the_share_is_held_and_another_key_chooses_others() -> None:
    source = tuple(Record(str(number)) for number in range(4000))

    first, second = hold_out(source, 0.25, KEY), hold_out(source, 0.25, b"k" * 32)
    assert 900 < len(first.held_out) < 1100
    texts = [{record.text for record in iterate(split.held_out)} for split in (first, second)]
    assert 180 < len(texts[0] & texts[1]) < 320


def test_nothing_is_held_out_where_nothing_is_asked() -> None:
    source = records(["a", "b"])

    split = hold_out(source, 0.0, KEY)
    assert split.members is source
    assert len(split.held_out) == 0
