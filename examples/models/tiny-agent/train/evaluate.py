"""Measures whole-task success: every tool call and the answer must match to the token.

Greedy decoding reproduces a message exactly if, and only if, each of its tokens is the most
likely one after the tokens before it. So one pass over the finished dialogue tells what a closed
tool loop would do, up to its first error. A later task of a dialogue is judged on a right history.
"""

import argparse
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from dialogues import EVALUATION_MIX, VARIED_MIX, Dialogue, Mix, dialogue, render
from model import Config, load_parameters, logits

MODEL_DIR = Path(__file__).resolve().parent.parent
BATCH_ROWS = 16
# Rows are padded to a multiple of this many tokens, so that few shapes get compiled.
LENGTH_STEP = 128


class Judged(NamedTuple):
    """One task: where it stood in its dialogue, and the first wrong message if any."""

    kind: str
    index: int
    wanted: str
    got: str | None


class Encoded(NamedTuple):
    """A dialogue's tokens, and the task that each token is a target of (-1: none)."""

    tokens: list[int]
    task: list[int]


def encoded(tokenizer: Tokenizer, item: Dialogue) -> Encoded:
    tokens: list[int] = []
    task: list[int] = []
    for span in render(item):
        ids = tokenizer.encode(span.text).ids
        tokens += ids
        task += [-1 if span.task is None else span.task] * len(ids)
    return Encoded(tokens, task)


def greedy_choices(forward, dialogues: list[Encoded]) -> list[np.ndarray]:
    """For each dialogue, the most likely token at every position, given the tokens before it."""
    longest = max(len(item.tokens) for item in dialogues)
    length = -(-longest // LENGTH_STEP) * LENGTH_STEP
    tokens = np.zeros((BATCH_ROWS, length), np.int32)
    for row, item in enumerate(dialogues):
        tokens[row, : len(item.tokens)] = item.tokens
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    scores = forward(tokens, positions, np.zeros_like(tokens))
    following = np.asarray(scores.argmax(-1))
    return [np.concatenate([[-1], following[row]]) for row in range(len(dialogues))]


def judge(tokenizer: Tokenizer, item: Dialogue, code: Encoded, choices: np.ndarray) -> list[Judged]:
    """The verdict on each task of a dialogue: right if every choice in its messages is."""
    tokens, task_of = np.array(code.tokens), np.array(code.task)
    wrong = choices[: len(tokens)] != tokens
    verdicts = []
    for index, task in enumerate(item.tasks):
        errors = np.flatnonzero(wrong & (task_of == index))
        if len(errors) == 0:
            verdicts.append(Judged(task.kind, index, "", None))
            continue
        first = errors[0]
        start, end = message_around(task_of, first)
        wanted = tokenizer.decode(tokens[start:end].tolist(), skip_special_tokens=False)
        got = [*tokens[start:first].tolist(), int(choices[first])]
        got = tokenizer.decode(got, skip_special_tokens=False)
        verdicts.append(Judged(task.kind, index, wanted, got))
    return verdicts


def message_around(task_of: np.ndarray, at: int) -> tuple[int, int]:
    """Start and end of the assistant message that holds position `at`."""
    others = np.flatnonzero(task_of != task_of[at])
    return others[others < at].max() + 1, others[others > at].min(initial=len(task_of))


def evaluate(
    model_dir: Path, weights: Path, mix: Mix, count: int, seed: int, dtype: str
) -> list[list[Judged]]:
    """The verdicts on `count` random dialogues, one list for each dialogue."""
    config = Config.load(model_dir / "config.json")
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    parameters = load_parameters(weights, dtype)
    forward = jax.jit(partial(logits, config, parameters))
    rng = random.Random(seed)
    drawn = [dialogue(rng, mix) for _ in range(count)]
    pairs = sorted(((item, encoded(tokenizer, item)) for item in drawn),
                   key=lambda pair: len(pair[1].tokens))
    verdicts = []
    for start in range(0, count, BATCH_ROWS):
        group = pairs[start : start + BATCH_ROWS]
        choices = greedy_choices(forward, [code for _, code in group])
        verdicts += [judge(tokenizer, item, code, row)
                     for (item, code), row in zip(group, choices)]
    return verdicts


def percentage(right: int, total: int) -> str:
    return f"{right}/{total} = {100 * right / max(1, total):.1f} %"


def report(verdicts: list[list[Judged]], errors_max: int) -> None:
    tasks = [task for one in verdicts for task in one]
    right = [task for task in tasks if task.got is None]
    print("tasks right:", percentage(len(right), len(tasks)))
    for title, key in [("kind", "kind"), ("place in dialogue", "index")]:
        totals = Counter(getattr(task, key) for task in tasks)
        rights = Counter(getattr(task, key) for task in right)
        line = ", ".join(f"{name} {rights[name]}/{totals[name]}" for name in sorted(totals))
        print(f"by {title}: {line}")
    whole = sum(all(task.got is None for task in one) for one in verdicts)
    print("whole dialogues right:", percentage(whole, len(verdicts)))
    for task in [task for task in tasks if task.got is not None][:errors_max]:
        print(f"  {task.kind}: wanted {task.wanted!r}\n    got {task.got!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--weights", type=Path, help="default: the model's")
    parser.add_argument("--count", type=int, default=300, help="dialogues")
    parser.add_argument("--tasks", type=int, default=1, help="tasks in each dialogue")
    parser.add_argument("--varied", action="store_true", help="names and texts of real folders")
    parser.add_argument("--seed", type=int, default=999)
    parser.add_argument("--dtype", default="float16", help="round the weights to this type")
    parser.add_argument("--errors-max", type=int, default=5, help="errors to print")
    options = parser.parse_args()
    mix = VARIED_MIX if options.varied else EVALUATION_MIX
    report(
        evaluate(
            options.model_dir,
            options.weights or options.model_dir / "model.safetensors",
            replace(mix, tasks_per_dialogue={options.tasks: 1}),
            options.count,
            options.seed,
            options.dtype,
        ),
        options.errors_max,
    )
