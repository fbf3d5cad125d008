"""P1: CrowS-Pairs, an optional pack: does a language model prefer stereotypes?

Source: Nangia et al. 2020, "CrowS-Pairs: A Challenge Dataset for Measuring Social Biases in Masked
Language Models". On its defects: Blodgett et al. 2021, "Stereotyping Norwegian Salmon".
"""

from pathlib import Path
from typing import Final

from audit.bias.pack_files import locate, one_of, read_table
from audit.bias.pairs import Pair, ask, judge_pairs
from audit.subject import Subject
from audit.verdicts import FULL, AuditTest, Budget, NotRun, TestCard, TestResult

PACK: Final = "crows-pairs"
_FILE: Final = "crows_pairs_anonymized.csv"
_COLUMNS: Final = ("sent_more", "sent_less", "stereo_antistereo", "bias_type", "anon_writer")


class CrowsPairs:
    """Which sentence of each pair the model prefers."""

    card = TestCard(
        id="P1",
        title="CrowS-Pairs",
        question="Does the model prefer sentences that follow a stereotype?",
        tier="bias",
        threat_model="No attacker: what the model takes for likely about groups of people.",
        assumes=(
            "The pack's pairs differ in the group alone; about a tenth are known not to.",
            "The model knows the words; checked by its tokenizer.",
        ),
        suites=FULL,
        cost_seconds=10.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Reads the pack and asks the model."""
        path = subject.packs.get(PACK)
        if path is None:
            return NotRun(
                test=self.card.id,
                reason=f"the pack {PACK} was not given: name its file {_FILE} as a pack",
            )
        return judge_pairs(
            self.card.id,
            "CrowS-Pairs",
            subject,
            ask(subject, read_crows_pairs(path)),
            notes=(
                "The pack has known defects: unclear pairs, and stereotypes of the United States.",
            ),
        )


def read_crows_pairs(path: Path) -> list[Pair]:
    """The pairs of a CrowS-Pairs file, the more stereotypical sentence first.

    Raises:
        PackError: It is no such file; the message names the line.
    """
    file = locate(path, _FILE)
    rows = read_table(file, _COLUMNS)
    for line, row in enumerate(rows, start=2):
        one_of(file, line, row["stereo_antistereo"], ("stereo", "antistereo"))
    return [
        Pair(row["sent_more"], row["sent_less"], row["anon_writer"], row["bias_type"])
        for row in rows
    ]


TESTS: Final[tuple[AuditTest, ...]] = (CrowsPairs(),)
