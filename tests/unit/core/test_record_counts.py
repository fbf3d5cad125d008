"""Counting: public shapes, and each record at most once in each of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.config import TokenizerSection
from core.config_sections import AuditSection, TaskSection
from core.data.held_out import Split
from core.data.records import Record, Subset
from core.errors import AuditError
from core.model import ModelConfig
from core.record_counts import MAX_CELLS, CountShape, Scored, count, score_records
from core.tasks.build import build_task
from core.tokenizer import load_tokenizer

SHAPE = CountShape((("age", ("old", "young")), ("sex", ("f", "m"))), ("no", "yes"), (0.0, 1.0, 2.0))

scored_records = st.builds(
    Scored,
    held_out=st.booleans(),
    groups=st.dictionaries(
        st.sampled_from(["age", "sex", "town"]), st.sampled_from(["old", "f", "m", "", "x"])
    ),
    loss=st.floats(),
    label=st.sampled_from([0, 1]),
    predicted=st.sampled_from([0, 1]),
)


@given(records=st.lists(scored_records, max_size=12), one=scored_records, shape=st.data())
def test_one_record_changes_one_count_by_one(
    records: list[Scored], one: Scored, shape: st.DataObject
) -> None:
    chosen = shape.draw(
        st.sampled_from([SHAPE, replace(SHAPE, labels=()), replace(SHAPE, attributes=())])
    )
    place = shape.draw(st.integers(0, len(records)))
    without = count(records, chosen)
    with_it = count([*records[:place], one, *records[place:]], chosen)
    cells, bins = with_it.cells - without.cells, with_it.histogram - without.histogram
    assert np.abs(cells).sum() <= 1
    assert cells.min(initial=0) == 0
    assert bins.sum() == 1
    assert bins.min() == 0


@given(records=st.lists(scored_records, max_size=12))
def test_who_has_the_public_values_is_in_the_table(records: list[Scored]) -> None:
    listed = [
        all(record.groups.get(name) in values for name, values in SHAPE.attributes)
        for record in records
    ]
    found = count(records, SHAPE)
    assert found.cells.sum() == sum(listed)
    assert found.histogram.sum() == len(records)


def test_a_record_stands_where_it_belongs() -> None:
    record = Scored(True, {"sex": "m", "age": "young"}, 1.5, label=1, predicted=0)
    found = count([record], SHAPE)
    assert found.cells[1, 1, 1, 1, 0] == 1
    assert found.histogram[1, 1] == 1


@pytest.mark.parametrize(
    ("loss", "place"),
    [(-1.0, 0), (0.0, 0), (0.999, 0), (1.0, 1), (5.0, 1), (math.inf, 1), (math.nan, 1)],
)
def test_a_loss_beyond_the_edges_is_in_an_outer_bin(loss: float, place: int) -> None:
    found = count([Scored(False, {}, loss, 0, 0)], SHAPE)
    assert found.histogram[0].tolist() == [int(place == 0), int(place == 1)]


def test_the_shape_follows_from_public_constants() -> None:
    task = TaskSection(kind="classification", labels=("no", "yes"))
    audit = AuditSection(attributes={"sex": ("f", "m"), "age": ("a", "b", "c")})
    shape = CountShape.of(audit, task, vocab_size=1000)
    assert [name for name, _ in shape.attributes] == ["age", "sex"]
    assert shape.cells == (2, 3, 2, 2, 2)
    assert shape.num_releases == 2
    assert shape.edges[0] == 0.0
    assert list(shape.edges) == sorted(set(shape.edges))
    assert math.log(2) == pytest.approx(shape.edges[shape.edges.index(round(math.log(2), 9))])


def test_a_language_model_has_a_histogram_alone() -> None:
    shape = CountShape.of(AuditSection(), TaskSection(kind="causal-lm"), vocab_size=1000)
    assert shape.num_cells == 0
    assert shape.num_releases == 1
    assert shape.edges[-1] == pytest.approx(4 * math.log(1000), abs=1e-8)


def test_a_table_that_does_not_travel_is_refused() -> None:
    values = tuple(f"v{number}" for number in range(32))
    audit = AuditSection(attributes={"a": values, "b": values, "c": values})
    with pytest.raises(AuditError, match=f"at most {MAX_CELLS} cells"):
        CountShape.of(
            audit,
            TaskSection(kind="causal-lm", labels=()).model_copy(update={"labels": ("x", "y")}),
            10,
        )


def test_what_is_said_of_a_record_does_not_follow_the_others() -> None:
    task = build_task(
        TaskSection(kind="classification", labels=("no", "yes")),
        load_tokenizer(TokenizerSection()),
        16,
    )
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=300, max_seq_len=16, n_layer=1, n_head=2, n_embd=16)
    model = task.build_model(shape).eval()
    records = [Record("a" * size, "yes", groups={"sex": "f"}) for size in (1, 9, 14, 3, 5, 12)]

    def scored(indices: list[int]) -> list[Scored]:
        split = Split(Subset(records, indices), Subset(records, ()))
        return list(score_records(model, task, split, torch.device("cpu")))

    whole = scored([0, 1, 2, 3, 4, 5])
    for index in range(6):
        assert scored([index]) == [whole[index]]
