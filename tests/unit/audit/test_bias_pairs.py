"""B4 to B6 and the packs: planted preferences and none, packs that are broken, missing words."""

from pathlib import Path

import numpy as np
import pytest

from audit.bias.crows_pairs import read_crows_pairs
from audit.bias.identities import Templates, identity_in, judge_identities, read_templates
from audit.bias.occupations import judge_occupations, read_winobias, read_winogender, spearman
from audit.bias.pairs import Answers, Pair, judge_pairs
from audit.bias.swap import Effects, judge_swap, swaps
from audit.bias.vocabulary import Vocabulary
from audit.verdicts import TestResult, Verdict
from core.config import TokenizerSection
from core.errors import PackError, ScoreError
from core.tokenizer import ByteTokenizer, load_tokenizer
from tests.support.planted_bias import judged

HEADER = "sent_more,sent_less,stereo_antistereo,bias_type,anon_writer\n"


def answers(rng: np.random.Generator, share: float, *, count: int = 2400) -> Answers:
    """A model that prefers the first text of a pair with this chance."""
    pairs = tuple(Pair("a", "b", f"unit {n % 60}", f"kind {n % 4}") for n in range(count))
    values = (rng.random(count) < share).astype(np.float64)
    return Answers(pairs, values, unknown=0.0, unusable=0)


def preference(seed: int, share: float, kind: str = "causal-lm") -> TestResult:
    given = answers(np.random.default_rng(seed), share)
    return judge_pairs("P1", "a pack", judged(seed, kind=kind), given)  # type: ignore[arg-type]


def test_a_preference_of_55_percent_is_flagged_and_none_is_not() -> None:
    planted = [preference(seed, 0.55).verdict for seed in range(6)]
    fair = [preference(seed, 0.50).verdict for seed in range(6)]
    assert planted == [Verdict.FAIL] * 6
    assert Verdict.FAIL not in fair


@pytest.mark.soak
def test_no_preference_is_flagged_in_at_most_one_of_twenty_runs() -> None:
    flagged = sum(preference(seed, 0.5).verdict is Verdict.FAIL for seed in range(300))
    assert flagged <= 0.05 * 300 + 3 * (0.05 * 0.95 * 300) ** 0.5


def test_a_classifier_is_asked_whether_its_prediction_changes() -> None:
    assert preference(0, 0.3, "classification").verdict is Verdict.FAIL
    assert preference(0, 0.02, "classification").verdict is Verdict.PASS


def test_a_model_without_the_words_decides_nothing() -> None:
    given = answers(np.random.default_rng(0), 0.9)
    blind = Answers(given.pairs, given.values, unknown=0.5, unusable=0)
    result = judge_pairs("P1", "a pack", judged(kind="causal-lm"), blind)  # type: ignore[arg-type]
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "lacks the words" in result.headline


def test_a_word_is_known_where_its_tokens_spell_it() -> None:
    clinic = Vocabulary(load_tokenizer(TokenizerSection(kind="clinic")))
    assert clinic.knows("woman")
    assert not clinic.knows("zebra")
    assert clinic.unknown_share(["woman zebra"]) == 0.5
    assert Vocabulary(ByteTokenizer()).unknown_share(["Any word at all"]) == 0.0


def test_a_swap_changes_one_pair_of_words_and_keeps_their_case() -> None:
    vocabulary = Vocabulary(ByteTokenizer())
    found = swaps("Woman aged 40. Brother of the woman had it.", vocabulary)
    assert [(swapped.words, swapped.about_woman) for swapped in found] == [
        ("woman/man", True),
        ("sister/brother", False),
    ]
    assert found[0].man == "Man aged 40. Brother of the man had it."
    assert found[1].woman == "Woman aged 40. Sister of the woman had it."
    assert swaps("nothing of the kind", vocabulary) == []
    assert swaps("a man and a woman", vocabulary) == []


def effects(rng: np.random.Generator, *, worse: float, changed: float) -> Effects:
    count = 1600
    return Effects(
        worse_for_woman=rng.normal(worse, 0.1, count),
        changed=rng.random(count) < changed,
        words=np.asarray([f"pair {n % 8}" for n in range(count)]),
        about_woman=np.arange(count) // 8 % 2 == 0,
    )


@pytest.mark.parametrize(
    ("worse", "changed", "verdict"),
    [
        (0.0, 0.01, Verdict.PASS),
        (0.2, 0.01, Verdict.FAIL),
        (-0.2, 0.01, Verdict.FAIL),
        (0.0, 0.3, Verdict.FAIL),
        (0.0, 0.1, Verdict.INCONCLUSIVE),
    ],
)
def test_a_planted_effect_of_a_word_is_found(
    worse: float, changed: float, verdict: Verdict
) -> None:
    planted = effects(np.random.default_rng(0), worse=worse, changed=changed)
    assert judge_swap(planted, judged()).verdict is verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(("worse", "whom"), [(0.2, "men"), (-0.2, "women")])
def test_the_headline_says_whom_a_word_favours(worse: float, whom: str) -> None:
    planted = effects(np.random.default_rng(0), worse=worse, changed=0.01)
    headline = judge_swap(planted, judged()).headline  # type: ignore[arg-type]

    assert headline.endswith(f"points in favour of {whom}.")
    assert "-" not in headline


def test_a_language_model_that_prefers_men_in_55_percent_is_flagged_and_a_fair_one_is_not() -> None:
    verdicts = {}
    for share in (0.5, 0.55):
        rng = np.random.default_rng(1)
        given = effects(rng, worse=0, changed=0)
        count = len(given.words)
        likes = np.tile(rng.random((count, 4)) < share, 1).mean(axis=1) - 0.5
        planted = Effects(likes, given.changed & False, given.words, given.about_woman)
        subject = judged(kind="causal-lm")
        verdicts[share] = judge_swap(planted, subject).verdict  # type: ignore[arg-type]
    assert verdicts[0.55] is Verdict.FAIL
    assert verdicts[0.5] is Verdict.PASS


def test_too_few_words_show_no_direction() -> None:
    given = effects(np.random.default_rng(0), worse=0.3, changed=0.0)
    few = Effects(
        given.worse_for_woman,
        given.changed,
        np.asarray(["one", "two"] * 800),
        np.arange(1600) // 2 % 2 == 0,
    )
    assert judge_swap(few, judged()).verdict is Verdict.INCONCLUSIVE  # type: ignore[arg-type]


def test_expected_pronouns_that_follow_the_share_of_women_are_found() -> None:
    rng = np.random.default_rng(0)
    names = [f"occupation {n:02}" for n in range(60)]
    women = {name: float(n) for n, name in enumerate(names)}
    pairs = tuple(Pair("she", "he", name) for name in names for _ in range(4))
    given = Answers(pairs, np.zeros(240), 0.0, 0)
    noise = rng.normal(0, 0.2, 240)
    trend = np.repeat(np.linspace(-0.5, 0.5, 60), 4)
    subject = judged(kind="causal-lm")
    planted = judge_occupations(given, trend + noise, women, subject)  # type: ignore[arg-type]
    fair = judge_occupations(given, noise, women, subject)  # type: ignore[arg-type]
    assert planted.verdict is Verdict.FAIL
    assert fair.verdict is Verdict.PASS
    assert spearman(np.zeros(9), np.arange(9.0), rng) == (0.0, 1.0)


def templates(rng: np.random.Generator) -> Templates:
    names = np.asarray([f"group {n % 10}" for n in range(4000)])
    return Templates(("",) * 4000, rng.random(4000) < 0.5, names)


def test_an_identity_whose_texts_are_flagged_is_named_alone() -> None:
    rng = np.random.default_rng(0)
    given = templates(rng)
    scores = given.bad * 2.0 + rng.normal(0, 1, 4000)
    fair = judge_identities(given, scores, judged())  # type: ignore[arg-type]
    hurt = given.identities == "group 3"
    scores[hurt] = rng.normal(0, 1, int(hurt.sum()))
    found = judge_identities(given, scores, judged())  # type: ignore[arg-type]
    assert fair.verdict is not Verdict.FAIL
    assert found.verdict is Verdict.FAIL
    assert "group 3:" in found.headline


def test_scores_that_are_no_numbers_are_refused() -> None:
    given = templates(np.random.default_rng(0))
    with pytest.raises(ScoreError, match="NaN"):
        judge_identities(given, np.full(4000, np.nan), judged())  # type: ignore[arg-type]


def test_an_identity_is_the_longest_that_a_text_names() -> None:
    assert identity_in("Hug African American people") == "african american"
    assert identity_in("hug people") is None


def test_crows_pairs_are_read_with_the_stereotype_first(tmp_path: Path) -> None:
    file = tmp_path / "crows_pairs_anonymized.csv"
    quoted = '"he said ""a, b"".","c ""d""",antistereo,age,w2\n'
    file.write_text(HEADER + '"a, b",c,stereo,gender,w1\n' + quoted)
    first, second = read_crows_pairs(tmp_path)
    assert first == Pair("a, b", "c", "w1", "gender")
    assert second == Pair('he said "a, b".', 'c "d"', "w2", "age")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sent_more,sent_less\na,b\n", "line 1: expected columns stereo_antistereo"),
        (HEADER + "a,b,stereo,gender\n", "line 2: expected 5 fields, got 4"),
        (HEADER + "a,b,stereo,gender,w\na,,stereo,gender,w\n", "line 3: expected something"),
        (HEADER + "a,b,other,gender,w\n", "line 2: expected one of stereo, antistereo"),
        (HEADER + '"a,b,stereo,gender,w\n', "line"),
        (HEADER, "expected rows below the header"),
    ],
)
def test_a_broken_pack_is_refused_by_file_and_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "pack.csv"
    file.write_text(content)
    with pytest.raises(PackError, match=said) as raised:
        read_crows_pairs(file)
    assert str(file) in raised.value.message


def test_packs_that_are_not_there_or_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="expected one file crows_pairs"):
        read_crows_pairs(tmp_path)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PackError, match="UTF-8"):
        read_templates(binary)


def test_templates_need_a_known_label(tmp_path: Path) -> None:
    file = tmp_path / "bias_madlibs_77k.csv"
    file.write_text('Text,Label,Template\n"hug gay",NOT_BAD,x\n"kill gay",BAD,x\n')
    assert read_templates(tmp_path).bad.tolist() == [False, True]
    file.write_text('Text,Label,Template\n"hug gay",GOOD,x\n')
    with pytest.raises(PackError, match="line 2"):
        read_templates(tmp_path)


def test_winogender_pairs_women_with_men(tmp_path: Path) -> None:
    statistics = tmp_path / "occupations-stats.tsv"
    statistics.write_text("occupation\tbls_pct_female\nclerk\t70.5\n")
    sentences = tmp_path / "all_sentences.tsv"
    rows = ["sentid\tsentence", "clerk.x.1.male.txt\the did", "clerk.x.1.female.txt\tshe did"]
    sentences.write_text("\n".join(rows) + "\n")
    read = read_winogender(tmp_path)
    assert read.pairs == (Pair("she did", "he did", "clerk"),)
    assert read.women == {"clerk": 70.5}
    sentences.write_text("\n".join([*rows, "baker.x.1.male.txt\the did"]) + "\n")
    with pytest.raises(PackError, match="all_sentences.tsv, line 4"):
        read_winogender(tmp_path)


def test_winobias_pairs_the_lines_of_two_files(tmp_path: Path) -> None:
    for kind in ("type1", "type2"):
        for part in ("dev", "test"):
            for stance, word in (("pro", "he"), ("anti", "she")):
                file = tmp_path / f"{stance}_stereotyped_{kind}.txt.{part}"
                file.write_text(f"1 [The clerk] said [{word}] went.\n")
    pairs = read_winobias(tmp_path)
    assert len(pairs) == 4
    assert pairs[0].first == "The clerk said he went."
    (tmp_path / "pro_stereotyped_type1.txt.dev").write_text("no number\n")
    with pytest.raises(PackError, match="line 1"):
        read_winobias(tmp_path)
