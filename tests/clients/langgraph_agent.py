"""A turn with a tool by LangGraph, over each API that LangChain speaks. Usage: langgraph_agent.py http://127.0.0.1:8080 [KEY]"""

import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel, Field

from checks import check, finish

base, key = sys.argv[1], (sys.argv[2:] or ["any"])[0]
read = []


@tool
def read_file(path: str) -> str:
    """Reads a file."""
    read.append(path)
    return "silver river garden"


class Animal(BaseModel):
    """An animal."""

    kind: str = Field(pattern="^(cat|dog)$")
    legs: int = Field(ge=0, le=4)


def openai(**more):
    return ChatOpenAI(model="tiny-agent", base_url=f"{base}/v1", api_key=key, max_retries=0, **more)


models = {
    "chat completions": openai(),
    "responses": openai(use_responses_api=True),
    "messages": ChatAnthropic(model="tiny-agent", base_url=base, api_key=key, max_retries=0, max_tokens=256),
}
for name, model in models.items():

    @check(f"{name}: an agent calls a tool and answers")
    def _():
        read.clear()
        out = create_react_agent(model, [read_file]).invoke({"messages": [("user", "what do the notes say?")]})
        assert read == ["notes.txt"], read
        assert "the notes were read" in out["messages"][-1].text, out["messages"][-1]

    @check(f"{name}: tokens are streamed")
    def _():
        pieces = [chunk.text for chunk in model.stream("hello")]
        assert len(pieces) > 1 and "".join(pieces), pieces

    @check(f"{name}: an answer has structure")
    def _():
        animal = model.with_structured_output(Animal).invoke("name an animal")
        assert animal.kind in ("cat", "dog") and 0 <= animal.legs <= 4, animal


finish()
