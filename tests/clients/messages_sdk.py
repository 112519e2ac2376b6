"""Messages through Anthropic's own SDK. Usage: messages_sdk.py http://127.0.0.1:8080 [KEY]"""

import asyncio
import json
import sys
import uuid

import anthropic
from anthropic import beta_tool
from pydantic import BaseModel

from checks import check, finish, refused

base, key = sys.argv[1], (sys.argv[2:] or ["any"])[0]
OPTIONS = {"base_url": base, "api_key": key, "max_retries": 0, "timeout": 120}
client = anthropic.Anthropic(**OPTIONS, _strict_response_validation=True)
MODEL = "tiny-agent"
CALC = {
    "name": "calc",
    "description": "Computes.",
    "input_schema": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}
HELLO = [{"role": "user", "content": "hello"}]
QUESTION = [{"role": "user", "content": "what is 17 * 23?"}]
MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
TooLarge = getattr(anthropic, "ContentTooLargeError", None) or getattr(anthropic, "RequestTooLargeError", anthropic.APIStatusError)
print(f"anthropic {anthropic.__version__}")


def ask(messages=HELLO, **fields):
    return client.messages.create(**{"model": MODEL, "max_tokens": 64, "messages": messages, **fields})


def total(usage):
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


def fresh(words=300):
    """A system prompt that nothing has cached."""
    return " ".join([uuid.uuid4().hex] + ["stone"] * words)


def text(message):
    return "".join(block.text for block in message.content if block.type == "text")


@check("a message has a text, usage and ids")
def _():
    reply = ask()
    assert reply.type == "message" and reply.role == "assistant" and reply.id.startswith("msg_"), reply
    assert reply.content[0].type == "text" and reply.content[0].text, reply
    assert reply.stop_reason == "end_turn" and reply.stop_sequence is None, reply
    assert reply.usage.output_tokens > 0 and reply.model == MODEL, reply
    assert reply._request_id == reply.id, reply._request_id


@check("a stream says the same as a whole message")
def _():
    whole = ask()
    with client.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == text(final) == text(whole), (said, whole)
    assert final.stop_reason == "end_turn", final
    assert total(final.usage) == total(whole.usage), (final.usage, whole.usage)
    assert final.usage.output_tokens == whole.usage.output_tokens


@check("raw events come in their order, and the first knows the prompt")
def _():
    events = list(ask(stream=True))
    kinds = [event.type for event in events]
    deltas = ["content_block_delta"] * (len(kinds) - 5)
    assert kinds == ["message_start", "content_block_start", *deltas, "content_block_stop", "message_delta", "message_stop"]
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO)
    assert total(events[0].message.usage) == counted.input_tokens, events[0]
    assert events[0].message.stop_reason is None and events[0].message.content == []


@check("a tool's round trip, whole and streamed, and its argument text to the byte")
def _():
    first = ask(QUESTION, tools=[CALC])
    call = first.content[-1]
    assert first.stop_reason == "tool_use" and call.type == "tool_use", first
    assert call.name == "calc" and call.input == {"expression": "17 * 23"} and call.id.startswith("toolu_"), call
    with client.messages.stream(model=MODEL, max_tokens=64, messages=QUESTION, tools=[CALC]) as stream:
        written = "".join(e.delta.partial_json for e in stream if e.type == "content_block_delta" and e.delta.type == "input_json_delta")
        streamed = stream.get_final_message().content[-1]
    assert written == '{"expression": "17 * 23"}' and streamed.input == call.input, (written, streamed)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "391"}]}
    turns = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = ask(turns, tools=[CALC])
    assert text(second) == "17 * 23 = 391" and second.stop_reason == "end_turn", second


@check("the SDK's own tool runner")
def _():
    @beta_tool
    def calc(expression: str) -> str:
        """Computes.

        Args:
            expression: What to compute.
        """
        left, right = expression.split(" * ")
        return str(int(left) * int(right))

    runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=64, messages=QUESTION, tools=[calc], max_iterations=4)
    assert text(runner.until_done()) == "17 * 23 = 391"


@check("a conversation that the host holds")
def _():
    if not hasattr(client.beta.messages, "thread"):
        return
    held = client.beta.messages.thread(model=MODEL, max_tokens=64, tools=[CALC], system="Be brief.")
    first = held.send(QUESTION[0])
    assert first.stop_reason == "tool_use", first
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "391"}
    second = held.send({"role": "user", "content": [result]})
    assert text(second) == "17 * 23 = 391", second
    assert second.usage.cache_read_input_tokens > 0 and held.previous_message_id == second.id, second.usage


@check("tool choices force and forbid calls")
def _():
    read = {"name": "read_file", "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}
    named = ask(tools=[CALC, read], tool_choice={"type": "tool", "name": "read_file"})
    assert named.content[0].type == "tool_use" and named.content[0].name == "read_file", named
    either = ask(tools=[CALC, read], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert [block.name in ("calc", "read_file") for block in either.content] == [True], either
    none = ask(QUESTION, tools=[CALC], tool_choice={"type": "none"})
    assert all(block.type == "text" for block in none.content), none


@check("tokens are counted as they are charged")
def _():
    prompt = {"messages": QUESTION, "system": [{"type": "text", "text": "Be brief."}], "tools": [CALC]}
    counted = client.messages.count_tokens(model=MODEL, **prompt)
    reply = ask(**prompt)
    assert counted.input_tokens == total(reply.usage), (counted, reply.usage)
    assert client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "foo"}], tools=[]).input_tokens > 0


@check("many counts at once")
def _():
    async def many():
        async with anthropic.AsyncAnthropic(**OPTIONS) as several:
            counts = [several.messages.count_tokens(model=MODEL, messages=HELLO, system=fresh(40 * i)) for i in range(1, 21)]
            return await asyncio.gather(*counts)

    counted = [count.input_tokens for count in asyncio.run(many())]
    assert len(counted) == 20 and all(a < b for a, b in zip(counted, counted[1:])), counted


@check("the cache is written up to the marks and read by the next turn")
def _():
    system = [{"type": "text", "text": fresh(), "cache_control": HOUR}]
    marked = lambda words: [{"type": "text", "text": words, "cache_control": MARK}]
    first = ask([{"role": "user", "content": marked("hello")}], system=system)
    wrote = first.usage
    assert wrote.cache_read_input_tokens == 0 and wrote.cache_creation.ephemeral_1h_input_tokens > 300, wrote
    assert wrote.cache_creation.ephemeral_5m_input_tokens > 0, wrote
    split = wrote.cache_creation.ephemeral_1h_input_tokens + wrote.cache_creation.ephemeral_5m_input_tokens
    assert split == wrote.cache_creation_input_tokens, wrote
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first.content}]
    second = ask([*turns, {"role": "user", "content": marked("what is 4 + 5?")}], system=system)
    read = second.usage
    assert read.cache_read_input_tokens + 16 > wrote.cache_creation_input_tokens, (wrote, read)
    assert read.cache_read_input_tokens + read.cache_creation_input_tokens + read.input_tokens == total(read)


@check("a request for no tokens warms the cache")
def _():
    prompt = {"system": [{"type": "text", "text": fresh(), "cache_control": MARK}]}
    warm = ask(max_tokens=0, **prompt)
    assert warm.content == [] and warm.stop_reason == "max_tokens" and warm.usage.output_tokens == 0, warm
    assert warm.usage.cache_creation_input_tokens > 300, warm.usage
    kinds = [event.type for event in ask(max_tokens=0, stream=True, **prompt)]
    assert kinds == ["message_start", "message_delta", "message_stop"], kinds
    reply = ask(**prompt)
    assert reply.usage.cache_read_input_tokens + 32 > warm.usage.cache_creation_input_tokens, reply.usage


@check("diagnostics name what changed")
def _():
    def told(system, previous, **fields):
        prompt = {"system": system, "messages": HELLO, **fields}
        reply = ask(**prompt, extra_body={"diagnostics": {"previous_message_id": previous}})
        # Older SDKs keep what they have no type for.
        diagnostics = getattr(reply, "diagnostics", None)
        if hasattr(diagnostics, "to_dict"):
            diagnostics = diagnostics.to_dict()
        return reply.id, diagnostics and diagnostics["cache_miss_reason"]

    system = fresh()
    first, reason = told(system, None)
    assert reason is None, reason
    second, reason = told(system, first, messages=[*HELLO, {"role": "assistant", "content": "hi"}, *HELLO])
    assert reason is None, reason
    _, reason = told(fresh(), second)
    assert reason["type"] == "system_changed" and reason["cache_missed_input_tokens"] > 300, reason
    long = [{"role": "user", "content": fresh()}]
    third, reason = told(system, None, messages=long)
    _, reason = told(system, third, messages=[{"role": "user", "content": fresh()}])
    assert reason["type"] == "messages_changed", reason
    _, reason = told(system, "msg_unknown")
    assert reason == {"type": "previous_message_not_found"}, reason


@check("stop sequences end the text, and the one that did is named")
def _():
    said = text(ask())
    stop = said[3:6]
    reply = ask(stop_sequences=["never seen", stop])
    assert reply.stop_reason == "stop_sequence" and reply.stop_sequence == stop, reply
    assert text(reply) == said.split(stop)[0], reply


@check("limits clamp and cut")
def _():
    assert ask(max_tokens=2).stop_reason == "max_tokens"
    assert ask(max_tokens=128_000, extra_headers={"x-stainless-helper": "t"}, timeout=120).stop_reason == "end_turn"


@check("thinking is accepted, and comes back")
def _():
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive", "display": "omitted"}, {"type": "disabled"}):
        assert ask(max_tokens=2048, thinking=thinking).content, thinking
    thought = {"type": "thinking", "thinking": "a greeting", "signature": "EqoBCkgIARABGAIiQL2UoU0b1OHYi"}
    turns = [*HELLO, {"role": "assistant", "content": [thought, {"type": "text", "text": "hi"}]}, *QUESTION]
    assert ask(turns, tools=[CALC]).stop_reason == "tool_use"


@check("structured output fits its schema")
def _():
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["city", "count"],
        "additionalProperties": False,
    }
    reply = ask(output_config={"format": {"type": "json_schema", "schema": schema}})
    said = json.loads(text(reply))
    assert said["city"] in ("Rome", "Oslo") and 0 <= said["count"] <= 9 and reply.stop_reason == "end_turn", reply


@check("the SDK parses structured output")
def _():
    class Flag(BaseModel):
        raised: bool

    reply = client.messages.parse(model=MODEL, max_tokens=64, messages=HELLO, output_format=Flag)
    assert isinstance(reply.parsed_output, Flag), reply


@check("betas, both dates, and what is unknown are accepted")
def _():
    more = {
        "metadata": {"user_id": "{}"},
        "service_tier": "auto",
        "extra_body": {"temperature": 0, "top_p": 1, "top_k": 5, "context_management": {"edits": []}, "container": "c", "novel": [1]},
    }
    for date in ("2023-06-01", "2026-10-21", "2031-01-01"):
        headers = {"anthropic-version": date, "anthropic-beta": "claude-code-20250219,novel-2031"}
        assert ask(extra_headers=headers, **more).content, date
    web = {"type": "web_search_20250305", "name": "web_search"}
    late = {**CALC, "name": "later", "defer_loading": True}
    assert client.beta.messages.create(
        model=MODEL, max_tokens=64, messages=QUESTION, tools=[CALC, web, late], betas=["advanced-tool-use-2025-11-20"]
    ).stop_reason == "tool_use"


@check("what is wrong is a BadRequestError that names the field")
def _():
    Bad = anthropic.BadRequestError
    raw = lambda body: client.post("/v1/messages", body=body, cast_to=object)
    for body, words in (
        ({"model": MODEL, "messages": HELLO}, "`max_tokens` is missing"),
        ({"max_tokens": 1, "messages": HELLO}, "`model` is missing"),
        ({"model": MODEL, "max_tokens": 1}, "`messages` is missing"),
        ({"model": MODEL, "max_tokens": "1", "messages": HELLO}, "`max_tokens` must be an integer"),
        ({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user"}]}, "`messages.0.content` is missing"),
    ):
        error = refused(lambda: raw(body), Bad, status_code=400)
        assert words in str(error), error
        assert error.body["type"] == "error" and error.body["error"]["type"] == "invalid_request_error", error.body
        assert error.request_id.startswith("req_") and error.body["request_id"] == error.request_id, error.request_id
    result = [{"type": "tool_result", "tool_use_id": "toolu_9", "content": "x"}]
    assert "messages.0.content.0" in str(refused(lambda: ask([{"role": "user", "content": result}]), Bad))
    image = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}]
    assert "`image`" in str(refused(lambda: ask([{"role": "user", "content": image}]), Bad))
    assert "unique" in str(refused(lambda: ask(tools=[CALC, CALC]), Bad))


@check("other errors have their classes")
def _():
    error = refused(lambda: ask(model="claude-none"), anthropic.NotFoundError)
    assert error.body["error"]["type"] == "not_found_error", error.body
    error = refused(lambda: client.get("/v1/nowhere", cast_to=object), anthropic.NotFoundError)
    assert error.body["error"]["type"] == "not_found_error", error.body
    error = refused(lambda: ask([{"role": "user", "content": "x" * (33 << 20)}]), TooLarge, status_code=413)
    assert error.body["error"]["type"] == "request_too_large", error.body


@check("a prompt that is too long is refused in the words that agents read")
def _():
    long = [{"role": "user", "content": "maple river " * 40_000}]
    error = refused(lambda: ask(long), anthropic.BadRequestError)
    words = error.body["error"]["message"].split()
    assert words[:5] == ["prompt", "is", "too", "long:", words[4]] and words[5:7] == ["tokens", ">"] and words[8] == "maximum", words
    assert int(words[4]) > int(words[7]), words
    assert client.messages.count_tokens(model=MODEL, messages=long).input_tokens == int(words[4])


finish()
