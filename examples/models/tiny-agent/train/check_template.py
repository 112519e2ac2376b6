"""Checks that the chat template renders what the model was trained on, to the byte.

Generated dialogues pass through the OpenAI message shape and the template; the text must equal
the training text, and its tokens those of the training spans. Message shapes that no training
dialogue has are checked against text written out here.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jinja2.sandbox
from tokenizers import Tokenizer

from dialogues import TRAINING_MIX, dialogue, openai_messages, openai_tools, render

MODEL_DIR = Path(__file__).resolve().parent.parent
RenderMessages = Callable[..., str]
DEFAULT_SYSTEM = "<|im_start|>system\nYou are a helpful agent.<|im_end|>\n"


def hugging_face_renderer(template: str, trim: bool) -> RenderMessages:
    """Jinja set up as Hugging Face does with `trim`, and with Jinja's own defaults without."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=trim, lstrip_blocks=trim)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template).render


def check_dialogues(render_messages: RenderMessages, tokenizer: Tokenizer, count: int) -> None:
    rng = random.Random(2024)
    mix = replace(TRAINING_MIX, tasks_per_dialogue={1: 1, 2: 1, 3: 1})
    for _ in range(count):
        item = dialogue(rng, mix)
        spans = render(item)
        wanted = "".join(span.text for span in spans)
        messages, tools = openai_messages(item), openai_tools(item)
        assert render_messages(messages=messages, tools=tools) == wanted
        wanted_tokens = [token for span in spans for token in tokenizer.encode(span.text).ids]
        assert tokenizer.encode(wanted).ids == wanted_tokens
        # What the assistant is asked to continue must be a prefix of the training text.
        replies = [at for at, one in enumerate(messages) if one["role"] == "assistant"]
        prompt = render_messages(
            messages=messages[: rng.choice(replies)], tools=tools, add_generation_prompt=True)
        assert wanted.startswith(prompt) and prompt.endswith("<|im_start|>assistant\n")


def tool_call(**arguments: str) -> dict:
    text = json.dumps(arguments)
    return {"id": "a", "type": "function", "function": {"name": "calc", "arguments": text}}


def check_message(render_messages: RenderMessages, message: dict, wanted: str) -> None:
    assert render_messages(messages=[message]) == DEFAULT_SYSTEM + wanted


def check_shapes(render_messages: RenderMessages) -> None:
    call_text = '<tool_call>\n{"name": "calc", "arguments": {"expression": "1 + 2"}}\n</tool_call>'
    call = tool_call(expression="1 + 2")
    parts = [{"type": "text", "text": "a <b>"}, {"type": "text", "text": "c"}]
    check_message(
        render_messages, {"role": "user", "content": parts},
        "<|im_start|>user\na <b>\nc<|im_end|>\n")
    check_message(
        render_messages, {"role": "assistant", "content": None, "tool_calls": [call]},
        f"<|im_start|>assistant\n{call_text}<|im_end|>\n")
    check_message(
        render_messages, {"role": "assistant", "tool_calls": [call, call]},
        f"<|im_start|>assistant\n{call_text}\n{call_text}<|im_end|>\n")
    check_message(
        render_messages, {"role": "assistant", "content": "So:", "tool_calls": [call]},
        f"<|im_start|>assistant\nSo:\n{call_text}<|im_end|>\n")
    as_map = {"function": {"name": "calc", "arguments": {"expression": "1 + 2"}}}
    check_message(
        render_messages, {"role": "assistant", "content": "", "tool_calls": [as_map]},
        f"<|im_start|>assistant\n{call_text}<|im_end|>\n")
    check_message(
        render_messages, {"role": "assistant", "content": None, "tool_calls": None},
        "<|im_start|>assistant\n<|im_end|>\n")
    check_message(
        render_messages, {"role": "tool", "tool_call_id": "a", "content": parts},
        "<|im_start|>user\n<tool_response>\na <b>\nc\n</tool_response><|im_end|>\n")
    check_system_prompts(render_messages)
    check_schemas(render_messages)


def check_system_prompts(render_messages: RenderMessages) -> None:
    messages = [
        {"role": "system", "content": "One."},
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]
    responses = "".join(
        f"<|im_start|>user\n<tool_response>\n{text}\n</tool_response><|im_end|>\n" for text in "34")
    assert render_messages(messages=messages, tools=None, add_generation_prompt=True) == (
        "<|im_start|>system\nOne.\nTwo.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        + responses + "<|im_start|>assistant\n")


def check_schemas(render_messages: RenderMessages) -> None:
    schemas = [
        (None, "{}"),
        ({}, "{}"),
        ({"type": "object"}, "{}"),
        ({"type": "object", "properties": {}}, "{}"),
        ({"properties": {"z": {}, "a": {"type": "integer"}}}, '{"z": "string", "a": "integer"}'),
        ({"properties": {"x": {"type": ["string", "null"]}}}, '{"x": "string"}'),
    ]
    for schema, wanted in schemas:
        function = {"name": "f"} if schema is None else {"name": "f", "parameters": schema}
        tools = [{"type": "function", "function": function}]
        assert render_messages(messages=[], tools=tools) == (
            "<|im_start|>system\nYou are a helpful agent.\n<tools>\n"
            f'{{"name": "f", "parameters": {wanted}}}\n</tools><|im_end|>\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=1000, help="dialogues")
    options = parser.parse_args()
    model_tokenizer = Tokenizer.from_file(str(options.model_dir / "tokenizer.json"))
    fields = json.loads((options.model_dir / "tokenizer_config.json").read_text())
    for trim_blocks in (False, True):
        renderer = hugging_face_renderer(fields["chat_template"], trim_blocks)
        check_dialogues(renderer, model_tokenizer, options.count)
        check_shapes(renderer)
    print(f"{options.count} dialogues and all message shapes rendered as wanted")
