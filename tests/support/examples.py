"""What the tests of `examples/` need: small files in the formats of the real data."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import BertProcessing

from core.model import Transformer
from core.pretrained_families import FAMILIES, Settings
from tests.support.command import ROOT, environment

_BERT = {
    "model_type": "bert",
    "vocab_size": 16,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
}
_WORDS = ("winter", "castle", "letter", "garden", "silver", "thunder")


def script(path: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs a script of `examples/` as its README says: by its path."""
    return subprocess.run(
        [sys.executable, ROOT / "examples" / path, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=environment(),
    )


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def sentences(opening: str) -> list[str]:
    """36 different texts."""
    return [f"{opening} {first} {second}" for first in _WORDS for second in _WORDS]


def write_collection(path: Path) -> Path:
    """Half ham, half spam, each once; then a spam of them with other digits."""
    lines = [f"ham\t{text}" for text in sentences("see you in the")]
    lines += [f"spam\tCALL 555 now, {text}" for text in sentences("win a")]
    path.write_text("\n".join([*lines, lines[-1].replace("555", "777")]) + "\n")
    return path


def write_script(path: Path) -> Path:
    """Four speakers; the last speech of a play repeats the first, and one says nothing."""
    speakers = ("HAMLET", "First Lord", "OPHELIA", "All")
    spoken = [
        f"{speakers[number % 4]}:\n{text},\nand away.\n"
        for number, text in enumerate(sentences("Good my lord, the"))
    ]
    path.write_text("\n".join([*spoken, "PORTER:\n", spoken[0]]))
    return path


def write_checkpoint(folder: Path) -> Path:
    """A BERT of a few thousand weights, with a tokenizer of whole words."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS]
    numbers = {word: token for token, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token=words[1]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = folder / "config.json"
    shape.write_text(json.dumps(_BERT))
    family = FAMILIES["bert"]
    model = Transformer(family.config(Settings(_BERT, shape)))
    weights = {family.source(name): weight for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return folder
