"""Every word of the embedded example: findings, styles of writing and names of records.

Nothing here describes a real person. Lower case and ASCII throughout; the generator capitalises
sentences. A finding has a wording for each hospital's habit (mercy, riverside, lakeside), and
``RARE_FINDINGS`` are the presentations that are easily missed: each is seldom, so a model sees
few examples of it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

FINDINGS: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    "cardiology": (
        ("chest pain", "chest tightness", "pressure over the chest"),
        ("palpitations", "irregular heartbeat", "racing heart"),
        ("swollen ankles", "ankle oedema", "puffy legs"),
        ("angina on exertion", "exertional chest discomfort", "heavy chest on stairs"),
        ("heart murmur", "systolic murmur", "extra heart sound"),
        ("fast irregular pulse", "atrial fibrillation", "pulse that skips beats"),
        ("raised troponin", "positive troponin", "high troponin result"),
        ("breathlessness lying flat", "orthopnoea", "need for three pillows"),
    ),
    "respiratory": (
        ("productive cough", "wet cough", "coughing up of phlegm"),
        ("wheeze", "expiratory wheeze", "whistling breathing"),
        ("shortness of breath", "dyspnoea", "lack of breath"),
        ("low oxygen saturation", "desaturation on air", "poor oxygen readings"),
        ("pleuritic pain", "pain on breathing in", "stitch when inhaling"),
        ("crackles at the lung base", "basal crackles", "crackling at the back"),
        ("coughing of blood", "haemoptysis", "blood in the sputum"),
        ("asthma attack", "acute asthma", "tight airways"),
    ),
    "gastroenterology": (
        ("abdominal pain", "belly pain", "cramps in the tummy"),
        ("vomiting", "emesis", "sickness after meals"),
        ("loose stools", "diarrhoea", "runny bowel motions"),
        ("heartburn", "acid reflux", "burning behind the breastbone"),
        ("jaundice", "yellow sclera", "yellow skin"),
        ("blood in the stool", "melaena", "black tarry stools"),
        ("difficulty swallowing", "dysphagia", "food sticking on the way down"),
        ("swollen abdomen", "ascites", "bloated belly"),
    ),
    "neurology": (
        ("severe headache", "migraine", "pounding head"),
        ("seizure", "tonic clonic fit", "shaking fit"),
        ("weakness of one arm", "unilateral limb weakness", "limp right arm"),
        ("slurred speech", "dysarthria", "mumbled words"),
        ("double vision", "diplopia", "blurred doubled sight"),
        ("numbness of the face", "facial paraesthesia", "tingling in the cheek"),
        ("spinning dizziness", "vertigo", "turning of the room"),
        ("hand tremor", "resting tremor", "trembling fingers"),
    ),
    "orthopaedics": (
        ("knee pain", "painful knee", "sore knee joint"),
        ("wrist fracture", "distal radius fracture", "broken wrist"),
        ("low back pain", "lumbar pain", "aching lower back"),
        ("swollen joint", "joint effusion", "puffy joint"),
        ("dislocated shoulder", "shoulder dislocation", "shoulder out of place"),
        ("hip pain on walking", "antalgic gait", "limping from the hip"),
        ("ankle sprain", "inversion injury of the ankle", "twisted ankle"),
        ("torn ligament", "ligament rupture", "knee that gives way"),
    ),
}

RARE_FINDINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "cardiology": (
        "jaw ache",
        "sudden cold sweat",
        "unexplained exhaustion",
        "bluish nail beds",
        "neck vein distension",
        "fainting on standing",
        "thready beat",
        "heaviness of the left elbow",
        "waking at night gasping",
        "greyish pallor",
    ),
    "respiratory": (
        "hoarse voice",
        "barking noise",
        "cyanosed lips",
        "clubbed fingertips",
        "pursed mouth",
        "noisy inspiration",
        "rusty spit",
        "snoring with pauses",
        "flaring nostrils",
        "drenched sheets overnight",
    ),
    "gastroenterology": (
        "loss of appetite",
        "early fullness",
        "itching without rash",
        "hiccups for hours",
        "weight loss",
        "mouth ulcers",
        "dark urine",
        "taste of metal",
        "soiled clothes",
        "craving for ice",
    ),
    "neurology": (
        "sudden confusion",
        "shuffling steps",
        "vacant stare",
        "word finding trouble",
        "drooping eyelid",
        "new clumsiness",
        "imagined smell of smoke",
        "unequal pupils",
        "shrinking handwriting",
        "getting lost at home",
    ),
    "orthopaedics": (
        "refusal to bear weight",
        "one leg turned out",
        "trigger thumb",
        "grinding on movement",
        "groin soreness",
        "loss of height",
        "click at the collarbone",
        "morning stiffness",
        "tender heel",
        "locked toe",
    ),
}


@dataclass(frozen=True)
class Style:
    """How a hospital writes. Slots in braces; a clause is one sentence."""

    opening: tuple[str, ...]
    second: tuple[str, ...]
    negated: tuple[str, ...]
    past: tuple[str, ...]
    family: tuple[str, ...]
    remarks: tuple[str, ...]
    reference: str
    people: Mapping[tuple[str, str], str]
    """By age group and sex."""


# One for each wording of FINDINGS, in that order.
STYLES: Final[tuple[Style, ...]] = (
    Style(
        opening=(
            "{age} year old {person} with {finding} {duration}.",
            "{person} aged {age} presents with {finding} {duration}.",
            "{age} year old {person} admitted for {finding} {duration}.",
        ),
        second=("also has {finding}.", "examination shows {finding}."),
        negated=("no {finding}.", "denies {finding}.", "no evidence of {finding}."),
        past=("history of {finding}, resolved.", "previously treated for {finding}."),
        family=("{relative} had {finding}.",),
        remarks=(
            "observations are stable.",
            "lives alone.",
            "takes no regular medicine.",
            "bloods are pending.",
            "smoker.",
        ),
        reference="record {first} {second}.",
        people={
            ("child", "female"): "girl",
            ("child", "male"): "boy",
            ("adult", "female"): "woman",
            ("adult", "male"): "man",
            ("elder", "female"): "woman",
            ("elder", "male"): "man",
        },
    ),
    Style(
        opening=(
            "{person}, {age}. {finding} {duration}.",
            "pt {person} {age}: {finding} {duration}.",
        ),
        second=("plus {finding}.", "o: {finding}."),
        negated=("nil {finding}.", "neg for {finding}.", "{finding} absent."),
        past=("hx {finding}, settled.", "prev {finding}, old."),
        family=("fhx {relative} {finding}.",),
        remarks=("obs ok.", "gp letter seen.", "await bloods.", "came by car.", "alert."),
        reference="ref {first} {second}.",
        people={
            ("child", "female"): "f child",
            ("child", "male"): "m child",
            ("adult", "female"): "f",
            ("adult", "male"): "m",
            ("elder", "female"): "f",
            ("elder", "male"): "m",
        },
    ),
    Style(
        opening=(
            "seen today: {person} of {age} who reports {finding} {duration}.",
            "we met {person} of {age} troubled by {finding} {duration}.",
        ),
        second=("there is {finding} too.", "relatives also mention {finding}."),
        negated=("there has been no {finding}.", "nobody has noticed {finding}."),
        past=("years back there was {finding}, now gone.",),
        family=("{relative} once suffered from {finding}.",),
        remarks=(
            "pleasant and talkative.",
            "walks with a stick.",
            "sleeps poorly.",
            "likes to garden.",
            "the dog waits outside.",
        ),
        reference="filed as {first} {second}.",
        people={
            ("child", "female"): "a little girl",
            ("child", "male"): "a little boy",
            ("adult", "female"): "a lady",
            ("adult", "male"): "a gentleman",
            ("elder", "female"): "an elderly lady",
            ("elder", "male"): "an elderly gentleman",
        },
    ),
)

DURATIONS: Final = (
    "for {count} days",
    "for {count} weeks",
    "since yesterday",
    "since this morning",
    "on and off for {count} days",
    "over the last {count} hours",
)
RELATIVES: Final = ("mother", "father", "brother", "sister", "uncle", "aunt")
# Two of these words name a record: 65,536 names, so that nearly every one occurs once. They say
# nothing about the label: a model that knows them has memorised its training records.
NAME_BEGINNINGS: Final = (
    *("ba", "bo", "da", "du", "fe", "fi", "ga", "go"),
    *("ka", "ke", "lo", "lu", "ma", "mi", "no", "nu"),
)
NAME_ENDINGS: Final = (
    *("bel", "cor", "dan", "fin", "gar", "han", "jim", "kel"),
    *("lon", "mur", "nes", "pim", "rut", "sol", "tev", "zan"),
)
MAX_NUMBER: Final = 99

_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
_SLOT = re.compile(r"\{[a-z]+\}")


def split_words(text: str) -> list[str]:
    """Words, numbers and marks of punctuation of a lower-case ASCII text."""
    return _WORD.findall(text)


def vocabulary() -> tuple[str, ...]:
    """Every word that a note can hold, sorted; from the lists above, never from notes."""
    words = {word for phrase in _phrases() for word in split_words(_SLOT.sub(" ", phrase))}
    return tuple(sorted(words))


def _phrases() -> Iterator[str]:
    for wordings in (wording for concepts in FINDINGS.values() for wording in concepts):
        yield from wordings
    for rare in RARE_FINDINGS.values():
        yield from rare
    for style in STYLES:
        yield from style.opening + style.second + style.negated
        yield from style.past + style.family + style.remarks
        yield from (style.reference, *style.people.values())
    yield from DURATIONS + RELATIVES
    yield from (begin + end for begin in NAME_BEGINNINGS for end in NAME_ENDINGS)
    yield from (str(number) for number in range(MAX_NUMBER + 1))
