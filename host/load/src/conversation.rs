//! The history of one session, as it is sent again with every turn.
//!
//! **Invariant:** where two turns of a trace have equal leading blocks, their bodies have equal leading text.

use std::sync::Arc;

use crate::api::{Answer, Api};
use crate::text::{Blocks, Writer};

/// What stands in the history as the model's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// What it said.
    AsCame,
    /// Text as long as the trace says, so that prompts do not depend on the model.
    Replayed,
}

/// A turn: its prompt, and the tokens of its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) prompt: Blocks<'a>,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
}

/// A history.
#[derive(Debug)]
pub(crate) struct Conversation {
    api: Api,
    answers: Answers,
    writer: Arc<Writer>,
    /// Fragment of a body; empty if there is none.
    pub(crate) system: String,
    /// Fragment of a body.
    pub(crate) history: String,
    /// Answers in it.
    said: Vec<Said>,
    /// The turn that was asked last.
    last: Option<Last>,
}

/// An answer in the history.
#[derive(Debug)]
struct Said {
    /// Where the history stands after it.
    end: usize,
    /// The same as a position in the prompt.
    token_end: u64,
    /// Its tool calls, by id; what follows has to answer them.
    calls: Vec<String>,
}

#[derive(Debug)]
struct Last {
    ids: Vec<u32>,
    prompt_tokens: u64,
    output_tokens: u64,
    answer: Answer,
}

impl Conversation {
    pub(crate) fn new(api: Api, answers: Answers, writer: Arc<Writer>) -> Self {
        let (system, history) = (String::new(), String::new());
        Self { api, answers, writer, system, history, said: Vec::new(), last: None }
    }

    /// Adds what a turn adds. The first `system_tokens` are a system message.
    ///
    /// A turn that does not go on from the one before, for its prompt was summarised or cut, keeps as many turns as they
    /// share, and says the rest anew.
    pub(crate) fn ask(&mut self, ask: Ask<'_>, system_tokens: u64) {
        let start = match self.last.take() {
            None => self.begin(&ask, system_tokens),
            Some(last) => {
                let shared = shared_tokens(&last, &ask);
                if shared >= last.prompt_tokens && ask.prompt_tokens > last.prompt_tokens {
                    self.go_on(&ask, last)
                } else {
                    self.rewind(shared, system_tokens.min(ask.prompt_tokens - 1))
                }
            }
        };
        let mut text = String::new();
        self.writer.write(&mut text, ask.prompt, start..ask.prompt_tokens.max(start + 1));
        let open = self.said.last().map_or(&[][..], |said| &said.calls);
        match open {
            [] => self.api.user(&mut self.history, &text),
            calls => self.api.results(&mut self.history, calls, &text),
        }
        self.last = Some(Last {
            ids: ask.prompt.ids.to_vec(),
            prompt_tokens: ask.prompt_tokens,
            output_tokens: ask.output_tokens,
            answer: Answer::default(),
        });
    }

    /// Keeps what the model said, for the next turn.
    pub(crate) fn answered(&mut self, answer: Answer) {
        let last = self.last.as_mut().expect("an answer follows a question");
        last.answer = answer;
    }

    fn begin(&mut self, ask: &Ask<'_>, system_tokens: u64) -> u64 {
        let system_tokens = system_tokens.min(ask.prompt_tokens - 1);
        if system_tokens > 0 {
            let mut text = String::new();
            self.writer.write(&mut text, ask.prompt, 0..system_tokens);
            self.system = self.api.system(&text);
        }
        system_tokens
    }

    /// Adds the answer to the turn before; what is new begins after it.
    fn go_on(&mut self, ask: &Ask<'_>, last: Last) -> u64 {
        // At least one token is new, whatever the trace says.
        let token_end = (last.prompt_tokens + last.output_tokens).min(ask.prompt_tokens - 1);
        let mut answer = last.answer;
        if self.answers == Answers::Replayed {
            answer = Answer::default();
            if token_end > last.prompt_tokens {
                self.writer.write(&mut answer.text, ask.prompt, last.prompt_tokens..token_end);
            }
        }
        self.api.answer(&mut self.history, &answer);
        let calls = answer.calls.into_iter().map(|call| call.id).collect();
        self.said.push(Said { end: self.history.len(), token_end, calls });
        token_end
    }

    /// Keeps what lies within shared tokens, up to the end of an answer; what is new begins there.
    fn rewind(&mut self, shared: u64, system_tokens: u64) -> u64 {
        let kept = self.said.iter().take_while(|said| said.token_end <= shared).count();
        self.said.truncate(kept);
        let end = self.said.last().map_or(0, |said| said.end);
        self.history.truncate(end);
        self.said.last().map_or(system_tokens, |said| said.token_end)
    }
}

/// Leading tokens that a prompt shares with the one before.
fn shared_tokens(last: &Last, ask: &Ask<'_>) -> u64 {
    let shared = last.ids.iter().zip(ask.prompt.ids).take_while(|(one, other)| one == other).count() as u64;
    // A last block that is partial has another id once it is filled.
    let whole = last.prompt_tokens / ask.prompt.block_tokens;
    if shared >= whole { last.prompt_tokens } else { shared * ask.prompt.block_tokens }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Call;

    fn ask(ids: &[u32], prompt_tokens: u64, output_tokens: u64) -> Ask<'_> {
        let prompt = Blocks { ids, block_tokens: 16, salt: 1, tail: 2 };
        Ask { prompt, prompt_tokens, output_tokens }
    }

    fn conversation(api: Api, answers: Answers) -> Conversation {
        Conversation::new(api, answers, Arc::new(Writer::new(1.0)))
    }

    fn body(of: &Conversation) -> Value {
        let body = of.api.body("{", Some(5), &of.system, &of.history);
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    fn said(text: &str) -> Answer {
        Answer { text: text.to_owned(), calls: Vec::new() }
    }

    #[test]
    fn a_turn_resends_the_history_and_adds_to_it() {
        for api in [Api::Chat, Api::Messages] {
            let mut talk = conversation(api, Answers::AsCame);
            talk.ask(ask(&[1, 2, 3], 48, 10), 16);
            let first = body(&talk);
            talk.answered(said("a \"quoted\" answer"));
            talk.ask(ask(&[1, 2, 3, 4, 5], 80, 10), 16);
            let second = body(&talk);
            let messages = second["messages"].as_array().expect("messages are a list");
            assert_eq!(
                messages[..first["messages"].as_array().map_or(0, Vec::len)],
                first["messages"].as_array().expect("a list")[..]
            );
            let words = messages.last().and_then(|m| m["content"].as_str()).map(|t| t.split(' ').count());
            assert_eq!(words, Some(22), "80 tokens less 48 of the prompt and 10 of the answer");
            let answer = &messages[messages.len() - 2]["content"];
            let text = if api == Api::Chat { answer.clone() } else { answer[0]["text"].clone() };
            assert_eq!(text, json!("a \"quoted\" answer"));
            let system = if api == Api::Chat { &messages[0]["content"] } else { &second["system"] };
            assert_eq!(system.as_str().map(|t| t.split(' ').count()), Some(16));
        }
    }

    #[test]
    fn replayed_answers_make_prompts_that_do_not_depend_on_the_model() {
        let of = |text: &str| {
            let mut talk = conversation(Api::Completions, Answers::Replayed);
            talk.ask(ask(&[1, 2], 32, 8), 0);
            talk.answered(said(text));
            talk.ask(ask(&[1, 2, 3], 48, 8), 0);
            body(&talk)["prompt"].clone()
        };
        assert_eq!(of("yes"), of("no"));
        let mut whole = conversation(Api::Completions, Answers::Replayed);
        whole.ask(ask(&[1, 2, 3], 48, 8), 0);
        assert_eq!(of("yes"), body(&whole)["prompt"], "the answer is what the next prompt has in its place");
    }

    #[test]
    fn tool_calls_are_answered_before_anything_else_is_said() {
        let call =
            |id: &str| Call { id: id.to_owned(), name: "ls".to_owned(), arguments: "{\"a\":1}".to_owned() };
        let answer = Answer { text: String::new(), calls: vec![call("x"), call("y")] };
        let of = |api: Api| {
            let mut talk = conversation(api, Answers::AsCame);
            talk.ask(ask(&[1], 16, 4), 0);
            talk.answered(answer.clone());
            talk.ask(ask(&[1, 2], 32, 4), 0);
            body(&talk)["messages"].clone()
        };
        let chat = of(Api::Chat);
        assert_eq!(chat[1]["tool_calls"][1]["function"]["arguments"], "{\"a\":1}");
        assert_eq!((&chat[2]["tool_call_id"], &chat[3]["tool_call_id"]), (&json!("x"), &json!("y")));
        let messages = of(Api::Messages);
        assert_eq!(messages[1]["content"][0]["input"], json!({ "a": 1 }));
        assert_eq!(messages[2]["content"][1]["tool_use_id"], "y");
    }

    #[test]
    fn a_prompt_that_was_cut_keeps_the_turns_that_it_shares() {
        let mut talk = conversation(Api::Chat, Answers::Replayed);
        for turns in [&[1_u32, 2][..], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6]] {
            talk.ask(ask(turns, turns.len() as u64 * 16, 8), 0);
        }
        let before = body(&talk)["messages"].clone();
        talk.ask(ask(&[1, 2, 3, 9], 64, 8), 0);
        let after = body(&talk)["messages"].clone();
        assert_eq!(before.as_array().map(Vec::len), Some(5));
        assert_eq!(after.as_array().map(Vec::len), Some(3), "one answer ends within the 48 shared tokens");
        assert_eq!(before.as_array().map(|m| &m[..2]), after.as_array().map(|m| &m[..2]));
        talk.ask(ask(&[7], 16, 8), 0);
        assert_eq!(body(&talk)["messages"].as_array().map(Vec::len), Some(1), "nothing is shared");
    }
}
