"""The Responses API through OpenAI's own SDK. Usage: responses_sdk.py http://127.0.0.1:8080 [KEY]"""

import importlib.util
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
    "name": "calc",
    "description": "Computes.",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}
QUESTION = "what is 17 * 23?"
print(f"openai {openai.__version__}, {MODEL}")


@check("a response has a text, usage and what was asked")
def _():
    response = client.responses.create(model=MODEL, input="hello", metadata={"a": "b"}, temperature=0)
    assert response.status == "completed" and response.output_text, response
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.metadata == {"a": "b"} and response.temperature == 0
    assert response.output[0].type == "message" and response.output[0].id.startswith("msg_")


@check("a stream says the same as a whole response")
def _():
    whole = client.responses.create(model=MODEL, input="hello", temperature=0)
    numbers, text, last = [], "", None
    for event in client.responses.create(model=MODEL, input="hello", temperature=0, stream=True):
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert numbers == list(range(len(numbers))), numbers
    assert last.type == "response.completed" and text == last.response.output_text == whole.output_text


@check("the stream helper accumulates")
def _():
    with client.responses.stream(model=MODEL, input=QUESTION, tools=[CALC], temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds, kinds
    call = [item for item in final.output if item.type == "function_call"][0]
    assert json.loads(call.arguments)["expression"], call


@check("a tool's round trip continues the stored response")
def _():
    first = client.responses.create(model=MODEL, input=QUESTION, tools=[CALC], temperature=0)
    call = [item for item in first.output if item.type == "function_call"][0]
    assert call.name == "calc" and call.id != call.call_id
    second = client.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "391"}],
        tools=[CALC],
        temperature=0,
    )
    assert "391" in second.output_text, second.output
    assert second.usage.input_tokens_details.cached_tokens > 0
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"], items
    newest = client.responses.input_items.list(second.id, limit=1)
    assert newest.data[0].type == "function_call_output" and newest.has_more


@check("the same conversation without a store gives the same answer")
def _():
    first = client.responses.create(
        model=MODEL, input=QUESTION, tools=[CALC], temperature=0, store=False, include=["reasoning.encrypted_content"]
    )
    history = [{"role": "user", "content": QUESTION}]
    history += [item.model_dump(exclude_none=True) for item in first.output]
    call = [item for item in first.output if item.type == "function_call"][0]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "391"})
    second = client.responses.create(model=MODEL, input=history, tools=[CALC], temperature=0, store=False)
    assert "391" in second.output_text
    refused(lambda: client.responses.retrieve(first.id), openai.NotFoundError)


@check("a stored response is retrieved, and gone after it is deleted")
def _():
    made = client.responses.create(model=MODEL, input="hello", temperature=0)
    again = client.responses.retrieve(made.id)
    assert again.to_dict() == made.to_dict()
    client.responses.delete(made.id)
    refused(lambda: client.responses.retrieve(made.id), openai.NotFoundError, code="response_not_found")
    refused(
        lambda: client.responses.create(model=MODEL, input="on", previous_response_id=made.id),
        openai.NotFoundError,
        code="previous_response_not_found",
        param="previous_response_id",
    )


@check("structured output is parsed")
def _():
    class Sum(BaseModel):
        total: int
        words: list[str]

    parsed = client.responses.parse(model=MODEL, input="hello", text_format=Sum, max_output_tokens=400)
    if parsed.status == "completed":
        assert isinstance(parsed.output_parsed, Sum), parsed.output
    else:
        # A small model may not come to an end; what it wrote is the beginning of what was asked.
        assert parsed.incomplete_details.reason == "max_output_tokens" and parsed.output_text.startswith("{")


@check("log-probabilities come where they are asked for")
def _():
    response = client.responses.create(
        model=MODEL, input="hello", temperature=0, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    tokens = response.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == response.output_text
    assert all(len(token.top_logprobs) == 2 for token in tokens)


@check("a limit makes a response incomplete")
def _():
    response = client.responses.create(model=MODEL, input="hello", max_output_tokens=2)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 2
    kinds = [e.type for e in client.responses.create(model=MODEL, input="hello", max_output_tokens=2, stream=True)]
    assert kinds[-1] == "response.incomplete", kinds


@check("input tokens are counted exactly")
def _():
    asked = {"model": MODEL, "input": QUESTION, "tools": [CALC], "instructions": "be brief"}
    counted = client.responses.input_tokens.count(**asked).input_tokens
    assert counted == client.responses.create(**asked, max_output_tokens=1).usage.input_tokens


@check("a compacted conversation goes on")
def _():
    items = [
        {"role": "user", "content": "my name is Ada"},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "hello"},
    ]
    # The SDK's own types have no user message in an output, which is what its documentation says is there.
    lenient = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
    compacted = lenient.responses.compact(model=MODEL, input=items)
    assert [item.type for item in compacted.output] == ["message", "message", "compaction"], compacted.output
    history = [item.to_dict() for item in compacted.output] + [{"role": "user", "content": "hello"}]
    assert client.responses.create(model=MODEL, input=history).status in ("completed", "incomplete")


@check("errors are of the right classes and name their field")
def _():
    create = client.responses.create
    refused(lambda: create(model="gpt-none", input="a"), openai.NotFoundError, code="model_not_found")
    refused(lambda: create(model=MODEL, input=3), openai.BadRequestError, param="input")
    refused(lambda: create(model=MODEL, input="a", temperature=9), openai.BadRequestError, param="temperature")
    refused(lambda: create(model=MODEL, input="a", background=True), openai.BadRequestError, param="background")
    refused(lambda: create(model=MODEL, input="a", conversation="c"), openai.BadRequestError, param="conversation")
    long = refused(lambda: create(model=MODEL, input="word " * 80_000), openai.BadRequestError)
    assert long.code == "context_length_exceeded", long.body
    refused(lambda: client.responses.cancel("resp_none"), openai.NotFoundError)
    made = create(model=MODEL, input="hello", max_output_tokens=1)
    refused(lambda: client.responses.cancel(made.id), openai.BadRequestError)


# The SDK speaks WebSocket through a package of its own.
if hasattr(client.responses, "connect") and importlib.util.find_spec("websockets"):

    @check("a connection carries a conversation")
    def _():
        with client.responses.connect() as connection:

            def ask(**fields):
                connection.response.create(model=MODEL, store=False, tools=[CALC], temperature=0, **fields)
                for event in connection:
                    assert event.type != "error", event
                    if event.type == "response.completed":
                        return event.response

            first = ask(input=QUESTION)
            call = [item for item in first.output if item.type == "function_call"][0]
            answer = [{"type": "function_call_output", "call_id": call.call_id, "output": "391"}]
            second = ask(input=answer, previous_response_id=first.id)
            assert "391" in second.output_text, second.output


finish()
