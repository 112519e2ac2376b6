"""Trains the model on generated dialogues, on a CPU, with JAX.

The run ends when the token budget or the time budget is spent, whichever comes first; the
learning rate follows the larger of the two shares, so that it always decays to the end.
"""

import argparse
import random
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

from dialogues import SESSION_MIX, TRAINING_MIX, Mix, dialogue, render
from model import Config, Parameters, load_parameters, logits, random_parameters, save_parameters

MODEL_DIR = Path(__file__).resolve().parent.parent

# Chosen: all other tokens count a little beside the assistant's. Without them, the features that
# copying needs form later.
OTHER_TOKEN_WEIGHT = 0.05
WARM_UP_STEPS = 60
# Share of the run after which the learning rate falls linearly.
DECAY_START = 0.55
# Share of the peak learning rate at the end of the run.
DECAY_FLOOR = 0.01
GRADIENT_NORM_MAX = 1.0
# Muon, https://kellerjordan.github.io/posts/muon. The step factor puts its steps and Adam's on one
# learning rate.
MUON_MOMENTUM = 0.95
MUON_STEP_FACTOR = 7.0
MUON_DECAY = 0.02
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAM_DECAY = 0.05
# The exported weights are a running mean of the trained ones over about 1 / (1 - this) steps.
AVERAGE_DECAY = 0.99
# Dialogues that wait for a row with room. More waste less of each row, and mix less by length.
WAITING_MAX = 24


class Shape(NamedTuple):
    """A kind of batch: its size, what its dialogues are made of, and its share of the steps."""

    rows: int
    length: int
    mix: Mix
    share: float


# Long rows cost more, since attention grows with the length, and hold long sessions.
SHAPES = [
    Shape(rows=8, length=512, mix=TRAINING_MIX, share=0.70),
    Shape(rows=4, length=1024, mix=SESSION_MIX, share=0.18),
    Shape(rows=2, length=2048, mix=SESSION_MIX, share=0.12),
]


class Batch(NamedTuple):
    """Arrays [rows, length]. `weights` say how much the prediction of a token counts."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray


class State(NamedTuple):
    parameters: Parameters
    average: Parameters
    momentum: Parameters
    adam: optax.OptState


class Packer:
    """Fills rows with whole dialogues; what does not fit in a row waits for the next one."""

    def __init__(self, tokenizer: Tokenizer, shape: Shape, seed: int) -> None:
        self.tokenizer = tokenizer
        self.shape = shape
        self.rng = random.Random(seed)
        self.waiting: deque[tuple[list[int], list[float]]] = deque()

    def encoded_dialogue(self) -> tuple[list[int], list[float]]:
        """Tokens and weights of a dialogue that fits in a row."""
        while True:
            tokens: list[int] = []
            weights: list[float] = []
            for span in render(dialogue(self.rng, self.shape.mix)):
                ids = self.tokenizer.encode(span.text).ids
                tokens += ids
                target_weight = 1.0 if span.task is not None else 0.0
                weights += [target_weight + OTHER_TOKEN_WEIGHT] * len(ids)
            if len(tokens) <= self.shape.length:
                # Nothing before the first token could predict it.
                weights[0] = 0.0
                return tokens, weights

    def batch(self) -> Batch:
        rows, length = self.shape.rows, self.shape.length
        batch = Batch(
            tokens=np.zeros((rows, length), np.int32),
            positions=np.zeros((rows, length), np.int32),
            segments=np.full((rows, length), -1, np.int32),
            weights=np.zeros((rows, length), np.float32),
        )
        for row in range(rows):
            self.fill_row(batch, row)
        return batch

    def fill_row(self, batch: Batch, row: int) -> None:
        start, segment = 0, 0
        while True:
            while len(self.waiting) < WAITING_MAX:
                self.waiting.append(self.encoded_dialogue())
            room = self.shape.length - start
            fitting = (item for item in self.waiting if len(item[0]) <= room)
            # A row starts with the dialogue that waited longest, so that none waits for ever;
            # then the largest that fits leaves the least empty.
            item = next(fitting, None) if start == 0 else max(
                fitting, key=lambda item: len(item[0]), default=None)
            if item is None:
                return
            self.waiting.remove(item)
            tokens, weights = item
            end = start + len(tokens)
            batch.tokens[row, start:end] = tokens
            batch.weights[row, start:end] = weights
            batch.positions[row, start:end] = np.arange(len(tokens))
            batch.segments[row, start:end] = segment
            start, segment = end, segment + 1


def loss(config: Config, parameters: Parameters, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy in nats, and that of the assistant's tokens alone."""
    scores = logits(
        config, parameters, batch.tokens[:, :-1], batch.positions[:, :-1], batch.segments[:, :-1])
    log_probabilities = jax.nn.log_softmax(scores, -1)
    following = batch.tokens[:, 1:, None]
    cost = -jnp.take_along_axis(log_probabilities, following, -1)[..., 0]
    weights = batch.weights[:, 1:]
    # A segment's first token has weight 0, so no prediction crosses from one into the next.
    targets = weights > OTHER_TOKEN_WEIGHT
    return (cost * weights).sum() / weights.sum(), (cost * targets).sum() / targets.sum()


def orthogonalised(update: jax.Array) -> jax.Array:
    """The update with its singular values pushed towards 1 (Newton-Schulz iteration)."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    rows, columns = update.shape
    x = update / (jnp.linalg.norm(update) + 1e-7)
    x = x.T if rows > columns else x
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if rows > columns else x
    # A matrix with more outputs than inputs gets larger steps, as in the reference Muon.
    return x * max(1.0, rows / columns) ** 0.5


def is_inner_matrix(name: str) -> bool:
    """Muon trains the projections; embeddings and norms are left to Adam."""
    return "_proj" in name


def adam_optimizer() -> optax.GradientTransformation:
    def is_matrix(parameters: Parameters) -> dict[str, bool]:
        return {name: value.ndim > 1 for name, value in parameters.items()}

    return optax.chain(
        optax.clip_by_global_norm(GRADIENT_NORM_MAX),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.add_decayed_weights(ADAM_DECAY, mask=is_matrix),
    )


def make_step(config: Config, adam: optax.GradientTransformation):
    """The compiled training step: (state, batch, learning rate) -> (state, assistant loss)."""

    def step(state: State, batch: Batch, rate: jax.Array) -> tuple[State, jax.Array]:
        def batch_loss(parameters: Parameters) -> tuple[jax.Array, jax.Array]:
            return loss(config, parameters, batch)

        gradients, assistant_loss = jax.grad(batch_loss, has_aux=True)(state.parameters)
        updates, adam_state = adam.update(gradients, state.adam, state.parameters)
        momentum, parameters, average = {}, {}, {}
        for name, value in state.parameters.items():
            gradient = gradients[name]
            momentum[name] = MUON_MOMENTUM * state.momentum[name] + gradient
            if is_inner_matrix(name):
                update = orthogonalised(MUON_MOMENTUM * momentum[name] + gradient)
                value = value * (1 - rate * MUON_DECAY) - rate * MUON_STEP_FACTOR * update
            else:
                value = value - rate * updates[name]
            parameters[name] = value
            kept = AVERAGE_DECAY * state.average[name]
            average[name] = kept + (1 - AVERAGE_DECAY) * value
        return State(parameters, average, momentum, adam_state), assistant_loss

    return jax.jit(step, donate_argnums=0)


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up by steps, then constant, then linear decay by `progress` of the run in 0..1."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    decay = min(1.0, (1 - progress) / (1 - DECAY_START))
    return peak * warm_up * max(DECAY_FLOOR, decay)


def initial_state(options: argparse.Namespace, config: Config) -> State:
    if options.resume:
        parameters = load_parameters(options.weights)
    else:
        parameters = random_parameters(config, options.seed)
    return State(
        parameters,
        average=jax.tree.map(jnp.copy, parameters),
        momentum=jax.tree.map(jnp.zeros_like, parameters),
        adam=adam_optimizer().init(parameters),
    )


def train(options: argparse.Namespace) -> None:
    config = Config.load(options.model_dir / "config.json")
    tokenizer = Tokenizer.from_file(str(options.model_dir / "tokenizer.json"))
    rng = random.Random(options.seed)
    packers = [Packer(tokenizer, shape, rng.randrange(2**32)) for shape in SHAPES]
    shares = [shape.share for shape in SHAPES]
    state = initial_state(options, config)
    step_function = make_step(config, adam_optimizer())
    print("parameters", sum(value.size for value in state.parameters.values()), flush=True)

    started, cpu_started = time.monotonic(), time.process_time()
    exported_at, step, tokens, progress = started, 0, 0, 0.0
    while progress < 1.0:
        batch = rng.choices(packers, shares)[0].batch()
        rate = learning_rate(options.learning_rate, step, progress)
        state, assistant_loss = step_function(state, batch, jnp.float32(rate))
        step += 1
        tokens += int((batch.segments >= 0).sum())
        elapsed_s = time.monotonic() - started
        progress = max(tokens / options.tokens_max, elapsed_s / (60 * options.minutes_max))
        if step % 50 == 0:
            cpu_s = time.process_time() - cpu_started
            print(f"step {step} loss {float(assistant_loss):.4f} rate {rate:.5f} "
                  f"tokens {tokens / 1e6:.2f}M {tokens / elapsed_s:.0f}/s "
                  f"{tokens / cpu_s:.0f}/cpu-s progress {progress:.3f}", flush=True)
        if time.monotonic() - exported_at > 60 * options.export_minutes:
            exported_at = time.monotonic()
            save_parameters(state.average, options.out)
    save_parameters(state.average, options.out)
    print(f"done: {step} steps, {tokens} tokens, {time.process_time() - cpu_started:.0f} CPU-s")


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--weights", type=Path, help="file to resume from; default: the model's")
    parser.add_argument("--out", type=Path, help="file to write; default: the model's")
    parser.add_argument("--resume", action="store_true", help="start from --weights")
    parser.add_argument("--tokens-max", type=float, default=8e6)
    parser.add_argument("--minutes-max", type=float, default=120)
    parser.add_argument("--export-minutes", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.weights = options.weights or options.model_dir / "model.safetensors"
    options.out = options.out or options.model_dir / "model.safetensors"
    return options


if __name__ == "__main__":
    train(parsed_options())
