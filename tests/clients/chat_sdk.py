"""Chat completions through OpenAI's own SDK. Usage: chat_sdk.py http://127.0.0.1:8080 [KEY]"""

import json
import sys

import openai
from pydantic import BaseModel

from checks import check, finish, refused

base, key = sys.argv[1], (sys.argv[2:] or ["any"])[0]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, _strict_response_validation=True)
MODEL = client.models.list().data[0].id
CALC = {
    "type": "function",
    "function": {
        "name": "calc",
        "description": "Computes.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
HELLO = [{"role": "user", "content": "hello"}]
QUESTION = [{"role": "user", "content": "what is 17 * 23?"}]
print(f"openai {openai.__version__}, {MODEL}")


@check("a completion has a text and usage")
def _():
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
    assert reply.choices[0].message.content and reply.choices[0].finish_reason == "stop", reply
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@check("a stream says the same as a whole completion, with usage at the end")
def _():
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


@check("the stream helper accumulates tool calls")
def _():
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, tools=[CALC], temperature=0) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    assert call.function.name == "calc" and json.loads(call.function.arguments)["expression"], call


@check("a tool's round trip")
def _():
    first = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[CALC], temperature=0)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and message.tool_calls, first
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "391"}
    messages = [*QUESTION, message.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[CALC], temperature=0)
    assert "391" in second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0


@check("a named tool is called")
def _():
    reply = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        tools=[CALC],
        tool_choice={"type": "function", "function": {"name": "calc"}},
        max_tokens=64,
    )
    assert reply.choices[0].message.tool_calls[0].function.name == "calc"


@check("structured output is parsed")
def _():
    class Sum(BaseModel):
        total: int
        words: list[str]

    try:
        reply = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Sum, max_tokens=400)
        assert isinstance(reply.choices[0].message.parsed, Sum), reply
    except openai.LengthFinishReasonError as cut:
        # A small model may not come to an end; what it wrote is the beginning of what was asked.
        assert cut.completion.choices[0].message.content.startswith("{")


@check("log-probabilities belong to the text")
def _():
    reply = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, logprobs=True, top_logprobs=2
    )
    tokens = reply.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == reply.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 for token in tokens)


@check("several choices")
def _():
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, n=3, seed=7, temperature=1.5, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]


@check("errors are of the right classes and name their field")
def _():
    create = client.chat.completions.create
    refused(lambda: create(model="gpt-none", messages=HELLO), openai.NotFoundError, code="model_not_found")
    refused(lambda: create(model=MODEL, messages=[]), openai.BadRequestError, param="messages")
    refused(lambda: create(model=MODEL, messages=HELLO, top_p=7), openai.BadRequestError, param="top_p")
    long = [{"role": "user", "content": "word " * 80_000}]
    refused(
        lambda: create(model=MODEL, messages=long), openai.BadRequestError, code="context_length_exceeded"
    )
    refused(lambda: client.post("/v1/none", cast_to=object), openai.NotFoundError)


finish()
