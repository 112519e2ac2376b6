"""Writes `tokenizer_config.json`, chat template included; with `--train`, `tokenizer.json` too.

Merges are trained with runs of letters isolated, so that no merge crosses from a space or a
punctuation mark into a word. A word then has the same tokens in every context (`read alpha.txt`,
`"alpha.txt"`, `docs/alpha.txt`), and copying a name is copying its tokens one by one. Digits are
single tokens for the same reason. At run time the plain Qwen2 split pattern gives the same tokens.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dialogues import TRAINING_MIX, dialogue, render

MODEL_DIR = Path(__file__).resolve().parent.parent
TEMPLATE = Path(__file__).resolve().parent / "chat_template.jinja"

SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
]
VOCABULARY_SIZE = 768
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIALOGUES = 20_000
# Chosen: the system prompt repeats, so most samples leave it out and merges serve the names.
SYSTEM_PROMPT_SHARE = 0.15


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def samples(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(DIALOGUES):
        spans = render(dialogue(rng, TRAINING_MIX))
        with_system_prompt = rng.random() < SYSTEM_PROMPT_SHARE
        yield "".join(span.text for span in spans[0 if with_system_prompt else 1 :])


def trained_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer with `VOCABULARY_SIZE` tokens, the special ones first."""
    bytes_as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split(QWEN2_SPLIT), split(r"\p{L}+"), bytes_as_letters])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(samples(seed=1), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN2_SPLIT), bytes_as_letters])
    return tokenizer


def tokenizer_config(position_max: int) -> dict:
    """The fields that Hugging Face tools and inference hosts read."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": position_max,
        "bos_token": "<|endoftext|>",
        "add_bos_token": False,
        "eos_token": "<|im_end|>",
        "add_eos_token": False,
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL_TOKENS)
        },
        "chat_template": TEMPLATE.read_text(),
    }


def write_json(fields: dict, path: Path) -> None:
    """Readers see the old file or the whole new one."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(fields, indent=2) + "\n")
    os.replace(unfinished, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--train", action="store_true", help="train new merges")
    options = parser.parse_args()
    if options.train:
        trained_tokenizer().save(str(options.model_dir / "tokenizer.json"))
    config = json.loads((options.model_dir / "config.json").read_text())
    write_json(
        tokenizer_config(config["max_position_embeddings"]),
        options.model_dir / "tokenizer_config.json",
    )
