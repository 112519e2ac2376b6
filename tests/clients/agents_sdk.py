"""A turn with a tool by OpenAI's Agents SDK, over both of its APIs. Usage: agents_sdk.py http://127.0.0.1:8080 [KEY]"""

import asyncio
import sys

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from checks import check, finish

base, key = sys.argv[1], (sys.argv[2:] or ["any"])[0]
client = AsyncOpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
set_tracing_disabled(True)
read = []


@function_tool
def read_file(path: str) -> str:
    """Reads a file."""
    read.append(path)
    return "silver river garden"


async def streamed(agent):
    result = Runner.run_streamed(agent, "what do the notes say?", max_turns=4)
    kinds = [event.type async for event in result.stream_events()]
    assert "raw_response_event" in kinds and "run_item_stream_event" in kinds, set(kinds)
    return result


loop = asyncio.new_event_loop()

for model in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
    agent = Agent(name="reader", tools=[read_file], model=model(model="tiny-agent", openai_client=client))

    @check(f"{model.__name__} calls a tool and answers")
    def _():
        read.clear()
        result = loop.run_until_complete(Runner.run(agent, "what do the notes say?", max_turns=4))
        assert read == ["notes.txt"], read
        assert "the notes were read" in result.final_output, result.final_output

    @check(f"{model.__name__} does so in a stream")
    def _():
        read.clear()
        result = loop.run_until_complete(streamed(agent))
        assert read == ["notes.txt"] and "the notes were read" in result.final_output, result.final_output


finish()
