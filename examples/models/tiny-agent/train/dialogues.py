"""Generator of synthetic agent dialogues: everything the model learns from is made here.

A dialogue is a system prompt with tools and one or more tasks. A task starts with a user
question and ends with the assistant's answer; tool calls and tool results lie between.
Rendering to text (`render`) and to OpenAI messages (`openai_messages`) start from the same turns.

Run as a program, it prints four examples.
"""

import json
import random
from dataclasses import dataclass, replace
from typing import Callable, NamedTuple

SYSTEM_SENTENCE = "You are a helpful agent."
MESSAGE_END = "<|im_end|>"
NOT_FOUND = "error: not found"

TOOLS: dict[str, dict[str, str]] = {
    "list_files": {"path": "string"},
    "read_file": {"path": "string"},
    "write_file": {"path": "string", "content": "string"},
    "calc": {"expression": "string"},
}

WORDS = """
alpha apple arch atlas autumn bacon badge bake banjo basil beach bell berry bird blank bloom board
bone book boot brave bread brick bridge brook brush cabin cable cake calm camp candle canoe card
carpet castle cedar chain chalk chart cherry chess cider circle city clay clerk cliff clock cloud
clover coal coast cobalt coin comet copper coral corn cotton crane cream creek crisp crow crown cube
curl daisy dance dawn deck deer delta desk dew dial dome door dove draft dream drift drum dusk eagle
earth east ebony echo edge elm ember engine fable falcon farm feast fern field film finch fire fjord
flag flame flint flora flute foam fog forest fork fox frame frost fruit galaxy garden gate gear gem
ghost giant ginger glass globe goat gold goose grain grape grass green grid grove guitar gulf hammer
harbor hawk hazel heart heron hill honey hook horn house ice idea index iris iron island ivory ivy
jade jar jazz jelly jewel jungle kayak key kite knot lake lamp lark laser lava leaf ledge lemon lens
level light lilac lily lime linen lion lock lotus lunar lynx magnet mango map maple marble march
marsh meadow melon mesa metal milk mill mint mirror mist moon moss moth mouse music nest night noble
north note oak oasis ocean olive onion opal orbit orchid otter oven owl oxide page palm panda paper
park path pearl pebble pen pepper petal piano pine pixel planet plum poem polar pond poppy port
prism pulse quartz quill quilt rabbit radar rain raven reef ribbon ridge ring river robin rocket
root rose ruby rust saddle saffron sage salt sand satin scale sea seed shade shell ship shore silk
silver sky slate snow solar song south spark spice spoon spring spruce square star steam steel stone
storm straw stream sugar summer sun swan table tea thorn thunder tide tiger timber toast topaz torch
tower trail train tree trout tulip tundra valley vapor velvet vine violet wagon walnut water wave
west wheat wheel willow wind winter wolf wood wool yarn zebra zinc
""".split()
FILE_EXTENSIONS = "txt md py rs json log csv toml yaml cfg".split()
COMMON_DIRECTORIES = "src docs data notes tests lib bin logs".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# What names and texts of real folders add to plain words.
VARIED_FILE_EXTENSIONS = "rs py sh js ts html css c h lock xml ini txt md json toml".split()
FILES_WITHOUT_EXTENSION = "Makefile LICENSE Dockerfile README NOTICE".split()
PUNCTUATION = [",", ".", "!", "?", ":", ";"]
POLITE_OPENINGS = ["please ", "can you ", "could you ", "now ", "then ", "next, "]
QUESTION_WORDS = ("what", "which", "how", "who")
LIST_PHRASINGS = [
    "list {d}", "what files are in {d}?", "show the files in {d}", "list the files in {d} please",
    "which files does {d} have?",
]
READ_PHRASINGS = [
    "read {f}", "what does {f} say?", "show me {f}", "open {f} please", "print the content of {f}",
]
CALC_PHRASINGS = [
    "what is {e}?", "compute {e}", "calculate {e} please", "{e} = ?", "how much is {e}?",
]
LIST_READ_PHRASINGS = [
    "list {d} and read the {w} file", "read the {w} file in {d}",
    "what does the {w} file in {d} say?",
]
READ_CALC_PHRASINGS = [
    "read {f} and {w} the numbers", "{w} the two numbers in {f}", "open {f} then {w} its numbers",
]
WRITE_PHRASINGS = ["write {t} to {f}", "save {t} in {f}", "put the text {t} into {f}"]
SMALL_TALK = [
    ("hello", "Hello! How can I help?"),
    ("hi", "Hello! How can I help?"),
    ("thanks", "You are welcome."),
    ("who are you?", "I am a small agent with file and calculator tools."),
    ("what can you do?", "I can list, read and write files and do arithmetic."),
    ("bye", "Goodbye."),
]


class Turn(NamedTuple):
    """One message. `role` is user, assistant or tool; a tool call has `tool` and `arguments`."""

    role: str
    text: str = ""
    tool: str | None = None
    arguments: dict[str, str] | None = None

    def body(self) -> str:
        """The message as the model sees it, without the ChatML frame."""
        if self.tool is not None:
            call = json.dumps({"name": self.tool, "arguments": self.arguments})
            return f"<tool_call>\n{call}\n</tool_call>"
        if self.role == "tool":
            return f"<tool_response>\n{self.text}\n</tool_response>"
        return self.text


class Task(NamedTuple):
    kind: str
    turns: list[Turn]


class Dialogue(NamedTuple):
    """`tools` are the names offered in the system prompt, in that order; empty means no tools."""

    tools: list[str]
    tasks: list[Task]


@dataclass(frozen=True)
class Mix:
    """What dialogues are made of. Weights are relative; single numbers are probabilities."""

    kinds: dict[str, float]
    files_per_list: dict[int, float]
    tasks_per_dialogue: dict[int, float]
    # A later task of a dialogue takes a name of an earlier one, as users do in a session.
    name_reuse: float = 0.0
    # Names, texts and phrasings go beyond lower-case words: capitals, digits, punctuation, lines.
    variety: float = 0.0
    # Only the tools that the tasks need, and some of the others, are offered.
    tool_subset_share: float = 0.0
    # No tools are offered and the user makes small talk.
    no_tools_share: float = 0.0


EVALUATION_MIX = Mix(
    kinds={"list": 3, "read": 3, "calc": 3, "list_read": 3, "read_calc": 3, "write": 2, "chat": 1,
           "missing": 1},
    files_per_list={1: 1, 2: 1, 3: 1, 4: 1},
    tasks_per_dialogue={1: 1},
)
# Lists of three and four files are the hardest to copy, so they are shown most.
TRAINING_MIX = Mix(
    kinds={"list": 4, "read": 2.5, "calc": 2, "list_read": 5, "read_calc": 2.5, "write": 3,
           "chat": 0.7, "missing": 1.2, "missing_directory": 0.5, "empty_directory": 0.3},
    files_per_list={1: 1, 2: 1.5, 3: 3, 4: 4, 5: 1, 6: 0.5},
    tasks_per_dialogue={1: 0.35, 2: 0.35, 3: 0.2, 4: 0.1},
    name_reuse=0.15,
    variety=0.3,
    tool_subset_share=0.08,
    no_tools_share=0.03,
)
SESSION_MIX = replace(TRAINING_MIX, tasks_per_dialogue={count: 1 for count in range(3, 20)})
VARIED_MIX = replace(
    EVALUATION_MIX, variety=1.0,
    kinds={**EVALUATION_MIX.kinds, "missing_directory": 1, "empty_directory": 1})


def draw(rng: random.Random, weights: dict) -> object:
    """One key of `weights`, with a probability in proportion to its value."""
    return rng.choices(list(weights), list(weights.values()))[0]


class TaskWriter:
    """Writes the tasks of one dialogue. It remembers names, so that later tasks can reuse them."""

    def __init__(self, rng: random.Random, mix: Mix) -> None:
        self.rng = rng
        self.mix = mix
        self.files: list[str] = []
        self.directories: list[str] = []
        # Names come from earlier tasks only: inside a task, a list must not hold a name twice.
        self.files_of_earlier_tasks: list[str] = []
        self.directories_of_earlier_tasks: list[str] = []

    def task(self, kind: str) -> Task:
        self.files_of_earlier_tasks = list(self.files)
        self.directories_of_earlier_tasks = list(self.directories)
        writers: dict[str, Callable[[], list[Turn]]] = {
            "list": self.list_task,
            "read": self.read_task,
            "calc": self.calc_task,
            "list_read": self.list_read_task,
            "read_calc": self.read_calc_task,
            "write": self.write_task,
            "chat": self.chat_task,
            "missing": self.missing_task,
            "missing_directory": self.missing_directory_task,
            "empty_directory": self.empty_directory_task,
        }
        return Task(kind, writers[kind]())

    def list_task(self) -> list[Turn]:
        directory = self.directory()
        names = self.file_names()
        self.files += [f"{directory}/{name}" for name in names]
        question = self.phrase(LIST_PHRASINGS, d=directory)
        noun = "file" if len(names) == 1 else "files"
        return [
            Turn("user", question),
            call("list_files", path=directory),
            Turn("tool", "\n".join(names)),
            Turn("assistant", f"{directory} has {len(names)} {noun}: {enumerated(names)}."),
        ]

    def read_task(self) -> list[Turn]:
        path = self.path()
        text = self.file_content()
        question = self.phrase(READ_PHRASINGS, f=path)
        return [
            Turn("user", question),
            call("read_file", path=path),
            Turn("tool", text),
            Turn("assistant", f"{path} says: {text}"),
        ]

    def calc_task(self) -> list[Turn]:
        expression = f"{self.number()} {self.rng.choice('+-*')} {self.number()}"
        value = evaluate(expression)
        question = self.phrase(CALC_PHRASINGS, e=expression)
        return [
            Turn("user", question),
            call("calc", expression=expression),
            Turn("tool", str(value)),
            Turn("assistant", f"{expression} = {value}"),
        ]

    def list_read_task(self) -> list[Turn]:
        directory = self.directory()
        names = self.file_names()
        self.files += [f"{directory}/{name}" for name in names]
        which, name = ("first", names[0]) if self.rng.random() < 0.6 else ("last", names[-1])
        text = self.file_content()
        question = self.phrase(LIST_READ_PHRASINGS, d=directory, w=which)
        return [
            Turn("user", question),
            call("list_files", path=directory),
            Turn("tool", "\n".join(names)),
            call("read_file", path=f"{directory}/{name}"),
            Turn("tool", text),
            Turn("assistant", f"{name} says: {text}"),
        ]

    def read_calc_task(self) -> list[Turn]:
        path = self.path(directory_share=0.0)
        left, right = self.number(), self.number()
        operator, verb = self.rng.choice([("+", "add"), ("*", "multiply"), ("-", "subtract")])
        expression = f"{left} {operator} {right}"
        value = evaluate(expression)
        question = self.phrase(READ_CALC_PHRASINGS, f=path, w=verb)
        return [
            Turn("user", question),
            call("read_file", path=path),
            Turn("tool", f"{left} {right}"),
            call("calc", expression=expression),
            Turn("tool", str(value)),
            Turn("assistant", f"{expression} = {value}"),
        ]

    def write_task(self) -> list[Turn]:
        path = self.path(directory_share=0.0)
        text = self.text()
        question = self.phrase(WRITE_PHRASINGS, t=text, f=path)
        return [
            Turn("user", question),
            call("write_file", path=path, content=text),
            Turn("tool", "ok"),
            Turn("assistant", f"Saved {path}."),
        ]

    def missing_task(self) -> list[Turn]:
        path = self.path(directory_share=0.0)
        phrasings = READ_PHRASINGS + READ_CALC_PHRASINGS if self.varied() else ["read {f}"]
        return [
            Turn("user", self.phrase(phrasings, f=path, w=self.rng.choice(["add", "multiply"]))),
            call("read_file", path=path),
            Turn("tool", NOT_FOUND),
            Turn("assistant", f"I could not find {path}."),
        ]

    def missing_directory_task(self) -> list[Turn]:
        directory = self.directory()
        return [
            Turn("user", self.list_question(directory)),
            call("list_files", path=directory),
            Turn("tool", NOT_FOUND),
            Turn("assistant", f"I could not find {directory}."),
        ]

    def empty_directory_task(self) -> list[Turn]:
        directory = self.directory()
        return [
            Turn("user", self.list_question(directory)),
            call("list_files", path=directory),
            Turn("tool", ""),
            Turn("assistant", f"{directory} is empty."),
        ]

    def chat_task(self) -> list[Turn]:
        question, answer = self.rng.choice(SMALL_TALK)
        if self.varied():
            question = question.capitalize() + self.rng.choice(["", "!", "."])
        return [Turn("user", question), Turn("assistant", answer)]

    def list_question(self, directory: str) -> str:
        """A question that starts with a look into a directory."""
        phrasings = LIST_PHRASINGS + LIST_READ_PHRASINGS
        return self.phrase(phrasings, d=directory, w=self.rng.choice(["first", "last"]))

    def varied(self) -> bool:
        return self.rng.random() < self.mix.variety

    def phrase(self, phrasings: list[str], **names: str) -> str:
        """One of the phrasings with `names` filled in, now and then dressed up."""
        phrasing = self.rng.choice(phrasings)
        if self.varied():
            if not phrasing.startswith(QUESTION_WORDS) and self.rng.random() < 0.4:
                phrasing = self.rng.choice(POLITE_OPENINGS) + phrasing
            if not phrasing.startswith("{") and self.rng.random() < 0.7:
                phrasing = phrasing[0].upper() + phrasing[1:]
            if not phrasing.endswith("?"):
                phrasing += self.rng.choice(["", ".", "!"])
        return phrasing.format(**names)

    def word(self) -> str:
        """A word of the list or, so that the model must copy and cannot recall, random letters."""
        if self.rng.random() < 0.65:
            return self.rng.choice(WORDS)
        return "".join(self.rng.choice(LETTERS) for _ in range(self.rng.randint(2, 7)))

    def varied_word(self) -> str:
        word = self.word()
        form = self.rng.randrange(6)
        if form == 0:
            return word.capitalize()
        if form == 1:
            return word.upper()
        if form == 2:
            return str(self.number())
        if form == 3:
            return word + self.rng.choice(PUNCTUATION)
        if form == 4:
            return f"{word}{self.rng.choice('_-./')}{self.rng.choice([self.word(), '1', '2.0'])}"
        return word

    def text(self) -> str:
        if self.varied():
            return " ".join(self.varied_word() for _ in range(self.rng.randint(1, 12)))
        return " ".join(self.word() for _ in range(self.rng.randint(2, 6)))

    def file_content(self) -> str:
        """Text of one line or, now and then, of two or three."""
        if self.varied() and self.rng.random() < 0.4:
            return "\n".join(self.text() for _ in range(self.rng.randint(2, 3)))
        return self.text()

    def number(self) -> int:
        if self.rng.random() < 0.3:
            return self.rng.randint(0, 9)
        return self.rng.randint(10, 99) if self.rng.random() < 0.6 else self.rng.randint(100, 9999)

    def file_name(self) -> str:
        if self.varied():
            return self.varied_file_name()
        name = self.word()
        if self.rng.random() < 0.25:
            name += self.rng.choice("_-") + self.word()
        if self.rng.random() < 0.15:
            name += str(self.rng.randint(1, 99))
        return f"{name}.{self.rng.choice(FILE_EXTENSIONS)}"

    def varied_file_name(self) -> str:
        if self.rng.random() < 0.15:
            return self.rng.choice(FILES_WITHOUT_EXTENSION)
        name = self.word()
        form = self.rng.randrange(4)
        if form == 0:
            name = name.upper()
        elif form == 1:
            name = name.capitalize() + self.word().capitalize()
        elif form == 2:
            name += self.rng.choice("_-.") + self.rng.choice([self.word(), "2", "test"])
        return f"{name}.{self.rng.choice(VARIED_FILE_EXTENSIONS)}"

    def file_names(self) -> list[str]:
        count = draw(self.rng, self.mix.files_per_list)
        return [self.file_name() for _ in range(count)]

    def directory(self) -> str:
        if self.directories_of_earlier_tasks and self.rng.random() < self.mix.name_reuse:
            return self.rng.choice(self.directories_of_earlier_tasks)
        common = self.rng.random() < 0.3
        directory = self.rng.choice(COMMON_DIRECTORIES) if common else self.word()
        if self.varied():
            directory += "/" + self.word()
        self.directories.append(directory)
        return directory

    def path(self, directory_share: float = 0.5) -> str:
        if self.files_of_earlier_tasks and self.rng.random() < self.mix.name_reuse:
            return self.rng.choice(self.files_of_earlier_tasks)
        path = self.file_name()
        if self.rng.random() < directory_share:
            path = f"{self.directory()}/{path}"
        self.files.append(path)
        return path


def call(tool: str, **arguments: str) -> Turn:
    return Turn("assistant", tool=tool, arguments=arguments)


def enumerated(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + " and " + names[-1]


def evaluate(expression: str) -> int:
    """The `calc` tool: `a + b`, `a - b` or `a * b` of integers."""
    left, operator, right = expression.split(" ")
    a, b = int(left), int(right)
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def dialogue(rng: random.Random, mix: Mix) -> Dialogue:
    """One random dialogue with the shares of `mix`."""
    writer = TaskWriter(rng, mix)
    count = draw(rng, mix.tasks_per_dialogue)
    if rng.random() < mix.no_tools_share:
        return Dialogue([], [writer.task("chat") for _ in range(count)])
    tasks = [writer.task(draw(rng, mix.kinds)) for _ in range(count)]
    tools = list(TOOLS)
    rng.shuffle(tools)
    if rng.random() < mix.tool_subset_share:
        needed = {turn.tool for task in tasks for turn in task.turns}
        # Small talk alone needs no tool; an empty list would mean another system prompt.
        subset = [tool for tool in tools if tool in needed or rng.random() < 0.5]
        tools = subset or tools
    return Dialogue(tools, tasks)


def system_prompt(tools: list[str]) -> str:
    if not tools:
        return SYSTEM_SENTENCE
    lines = [json.dumps({"name": tool, "parameters": TOOLS[tool]}) for tool in tools]
    return "\n".join([SYSTEM_SENTENCE, "<tools>", *lines, "</tools>"])


class Span(NamedTuple):
    """A piece of a rendered dialogue; `task` is the index of the task whose target it is, or None.

    Targets are what the assistant must produce: its message and the token that ends it.
    """

    text: str
    task: int | None = None


def render(dialogue: Dialogue) -> list[Span]:
    """The dialogue as ChatML text, cut where targets begin and end."""
    spans = [Span(f"<|im_start|>system\n{system_prompt(dialogue.tools)}{MESSAGE_END}\n")]
    for index, task in enumerate(dialogue.tasks):
        for turn in task.turns:
            if turn.role == "assistant":
                spans.append(Span("<|im_start|>assistant\n"))
                spans.append(Span(turn.body() + MESSAGE_END, task=index))
                spans.append(Span("\n"))
            else:
                spans.append(Span(f"<|im_start|>user\n{turn.body()}{MESSAGE_END}\n"))
    return spans


def openai_messages(dialogue: Dialogue) -> list[dict]:
    """The dialogue as the `messages` of a chat completions request."""
    messages: list[dict] = [{"role": "system", "content": SYSTEM_SENTENCE}]
    call_id = ""
    for turn in (turn for task in dialogue.tasks for turn in task.turns):
        if turn.tool is not None:
            call_id = f"call_{len(messages)}"
            function = {"name": turn.tool, "arguments": json.dumps(turn.arguments)}
            messages.append({
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call_id, "type": "function", "function": function}],
            })
        elif turn.role == "tool":
            messages.append({"role": "tool", "tool_call_id": call_id, "content": turn.text})
        else:
            messages.append({"role": turn.role, "content": turn.text})
    return messages


def openai_tools(dialogue: Dialogue) -> list[dict]:
    """The dialogue's tools as the `tools` of a chat completions request."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool,
                "description": f"The {tool} tool.",
                "parameters": {
                    "type": "object",
                    "properties": {name: {"type": kind} for name, kind in TOOLS[tool].items()},
                    "required": list(TOOLS[tool]),
                },
            },
        }
        for tool in dialogue.tools
    ]


if __name__ == "__main__":
    example_rng = random.Random(0)
    for _ in range(4):
        example = dialogue(example_rng, TRAINING_MIX)
        print([task.kind for task in example.tasks])
        print("".join(span.text for span in render(example)))
