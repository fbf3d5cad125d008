"""What models are asked: likelihoods one by one and in batches, pairs that say nothing, reading."""

from dataclasses import replace
from string import printable

import numpy as np
import pytest
import torch

from audit.bias.pairs import Answers, Pair, ask, judge_pairs, log_likelihoods, predictions
from audit.bias.reading import MIN_READ, Reading, disordered, reading_of
from audit.subject import Subject
from audit.verdicts import Verdict
from core.config import TokenizerSection
from core.model_folder import LoadedModel
from core.tokenizer import load_tokenizer
from tests.support.audit_subjects import made_up_subject
from tests.support.federation import FEDERATION
from tests.support.language_subject import language_subject
from tests.support.planted_bias import judged

ROOM = 48
TEXTS = ("a", "the man sat", "She said: the storm is over, and the rain.", "", "na\u00efve")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    federation = FEDERATION.replace("max_seq_len = 16", f"max_seq_len = {ROOM}")
    subject = made_up_subject(tmp_path_factory.mktemp("run"), federation=federation)
    return with_weights(subject)


@pytest.fixture(scope="module")
def language(classifier: Subject) -> Subject:
    return with_weights(language_subject(classifier))


def with_weights(subject: Subject) -> Subject:
    """Weights large enough for the model to prefer something."""
    model = subject.model.model
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    loaded = LoadedModel(model, subject.model.task, subject.model.tokenizer, {})
    return replace(subject, model=loaded)


def one_by_one(subject: Subject, text: str) -> float:
    """By the chain rule, without batch, padding or task."""
    tokens = subject.model.tokenizer.encode(text)
    total = 0.0
    for end in range(1, len(tokens)):
        given = torch.tensor([tokens[:end]])
        with torch.no_grad():
            logits = subject.model.model(given, torch.ones_like(given, dtype=torch.bool))
        total += float(logits[0, -1].double().log_softmax(dim=-1)[tokens[end]])
    return total


def test_likelihoods_are_those_of_the_chain_rule(language: Subject) -> None:
    wanted = [one_by_one(language, text) for text in TEXTS]
    assert log_likelihoods(language, TEXTS) == pytest.approx(wanted, abs=1e-3)
    assert np.std(wanted) > 1


def test_neither_order_nor_neighbours_change_a_likelihood(language: Subject) -> None:
    rng = np.random.default_rng(0)
    letters = list("abcdefgh ")
    texts = ["".join(rng.choice(letters, rng.integers(1, ROOM - 2))) for _ in range(150)]
    alone = np.array([log_likelihoods(language, [text])[0] for text in texts])
    assert log_likelihoods(language, texts) == pytest.approx(alone, abs=1e-3)
    order = rng.permutation(len(texts))
    mixed = log_likelihoods(language, [texts[n] for n in order])
    assert mixed == pytest.approx(alone[order], abs=1e-3)


def test_the_likelier_text_of_a_pair_is_preferred(language: Subject) -> None:
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("xyz "), 20)) for _ in range(40)]
    pairs = [Pair(one, two, "u") for one, two in zip(texts[::2], texts[1::2], strict=True)]
    wanted = [one_by_one(language, p.first) > one_by_one(language, p.second) for p in pairs]
    assert ask(language, pairs).values.tolist() == [float(value) for value in wanted]
    turned = ask(language, [Pair(pair.second, pair.first, "u") for pair in pairs])
    assert turned.values.tolist() == [float(not value) for value in wanted]


def test_texts_that_are_the_same_to_the_model_are_a_tie(language: Subject) -> None:
    long = [Pair("same words here", "same words here", "u") for _ in range(70)]
    assert set(ask(language, long).values) == {0.5}


def test_a_classifier_answers_whether_its_prediction_changes(classifier: Subject) -> None:
    rng = np.random.default_rng(2)
    texts = ["".join(rng.choice(list(printable), rng.integers(2, 40))) for _ in range(80)]
    alone = [int(predictions(classifier, [text])[0]) for text in texts]
    assert len(set(alone)) == 2
    pairs = [Pair(one, two, "u") for one, two in zip(texts[::2], texts[1::2], strict=True)]
    wanted = [float(one != two) for one, two in zip(alone[::2], alone[1::2], strict=True)]
    answers = ask(classifier, pairs)
    assert answers.values.tolist() == wanted
    assert answers.reading is None


def test_pairs_that_would_be_cut_are_left_out(language: Subject) -> None:
    room = ROOM - 2  # an opening and a closing token
    pairs = [Pair("a" * room, "b", "fits"), Pair("a", "b" * (room + 1), "cut")]
    answers = ask(language, pairs)
    assert [pair.unit for pair in answers.pairs] == ["fits"]
    assert answers.unusable == 1


def test_pairs_whose_words_the_model_lacks_are_left_out(language: Subject) -> None:
    clinic = load_tokenizer(TokenizerSection(kind="clinic"))
    blind = replace(language, model=replace(language.model, tokenizer=clinic))
    answers = ask(blind, [Pair("the woman", "the zebra", "u"), Pair("zebra man", "zebra boy", "v")])
    assert "u" not in {pair.unit for pair in answers.pairs}
    assert answers.unknown > 0.2


SENTENCES = [f"The clerk number {n} told her that it would rain." for n in range(60)]


def test_disorder_keeps_the_words_and_both_ends() -> None:
    rng = np.random.default_rng(0)
    mixed = disordered(SENTENCES[0], rng)
    assert mixed is not None
    assert mixed != SENTENCES[0]
    assert sorted(mixed.split()) == sorted(SENTENCES[0].split())
    assert mixed.split()[0] == "The"
    assert mixed.split()[-1] == "rain."
    assert disordered("Too few words here.", rng) is None
    assert disordered("no no no no no no no", rng) is None


def test_who_knows_the_order_of_words_reads_and_who_guesses_does_not() -> None:
    rng = np.random.default_rng(0)
    known = set(SENTENCES)

    def reader(texts: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([0.0 if text in known else -1.0 for text in texts])

    def guesser(texts: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return rng.normal(size=len(texts))

    assert reading_of(SENTENCES, reader, rng).fluent  # type: ignore[arg-type]
    assert not reading_of(SENTENCES, guesser, rng).fluent  # type: ignore[arg-type]
    assert reading_of(SENTENCES, reader, rng).measure().limit == MIN_READ  # type: ignore[arg-type]
    assert not reading_of(["short"], reader, rng).fluent  # type: ignore[arg-type]


def test_a_model_that_does_not_read_decides_nothing(language: Subject) -> None:
    """It prefers one sex by letters alone: without the check of reading this were a FAIL."""
    pairs = [
        Pair(f"{text[:30]} he", f"{text[:30]} him", str(n)) for n, text in enumerate(SENTENCES)
    ]
    given = ask(language, pairs)
    assert given.reading is not None
    result = judge_pairs("P1", "a pack", language, given)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "in disorder" in result.headline
    assert {measure.name for measure in result.measures} == {"unknown-words", "word-order"}
    reads = replace(given, reading=Reading(190, 200))
    assert "in disorder" not in judge_pairs("P1", "a pack", language, reads).headline


def test_a_preference_is_flagged_of_a_model_that_reads_only() -> None:
    rng = np.random.default_rng(0)
    pairs = tuple(Pair("a", "b", f"unit {n % 60}") for n in range(2400))
    values = (rng.random(2400) < 0.6).astype(np.float64)
    for read, verdict in ((190, Verdict.FAIL), (120, Verdict.INCONCLUSIVE)):
        given = Answers(pairs, values, 0.0, 0, Reading(read, 200))
        subject = judged(kind="causal-lm")
        assert judge_pairs("P1", "a pack", subject, given).verdict is verdict  # type: ignore[arg-type]
