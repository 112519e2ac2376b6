//! One request, from its bytes to its last token. Read this first.
//!
//! Each line of [`journey`] is a module; the comment beside it says what may happen there.
//! **Invariant:** a request is decided by one generation of policies, the one that was active when it came
//! in, and holds one seat from before it is parsed until its answer is out.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Request as HttpRequest};
use axum::response::Response;
use decide::Wishes;
use engine::SamplingParams;
use policy::{Pin, Subject, Table};
use tokio::sync::mpsc;

use crate::answer::{Answer, Choice, Pinned};
use crate::api::{self, Endpoint, stream};
use crate::app::{App, Seat};
use crate::ctx::Moment;
use crate::door::Place;
use crate::prompt::{Detokenizer, Guide, OutputParser, StopMatcher};
use crate::request::{Input, Prompt, Refusal, Request};
use crate::resume::{self, IdempotencyKey, Resumed};
use crate::retain::{self, Turn};
use crate::route::{self, Prefill, Routed};
use crate::speculation::Next;
use crate::worker::{Handoff, SequenceHints, Start, Taker, handoff};
use crate::{admit, auth, hints, middleware, render, row};

/// A call to an endpoint that generates. A star marks a policy slot.
pub async fn journey(
    app: Arc<App>,
    call: HttpRequest<Body>,
    endpoint: Endpoint,
) -> Result<Response, Refusal> {
    let arrived = app.ctx.now();
    let caller = app.auth.caller(call.headers())?; //                                         401, before anything is read
    let seat = app.enter(&caller)?; //                                                        429 before anybody pays
    let call = api::body::read(call, &app.config.limits).await?; //                           408, 413, 415
    let tenant = caller.tenant; //                                                            rules match on it
    let model = api::asked_model(&app, &call.body); //                                        and on this, as it came
    let policies = policies(&app, model, &tenant, &call.headers); //                          generation and chain, to the end
    let (headers, body) = middleware::pass(&app, &policies, call)?; //                      * no answer: refused
    let (request, writer) = endpoint.parse(&app, &body, &headers, &tenant).await?; //         400, naming the field
    let key = IdempotencyKey::of(&headers, &tenant, request.protocol, &body)?; //                  under which it can be gone on with
    let request = request.of_tenant(tenant).with_key(key); //                                 so does the cache
    let answer = answer(&app, Visit { seat, policies, arrived }, &request).await?; //         the rest of the line, below
    stream::respond(answer, request.streamed, writer).await //                                text, calls, usage, events
}

/// What a call holds from its arrival to the end of its answer.
pub struct Visit {
    /// Its place in the house.
    pub seat: Seat,
    /// The generation and chain that decide everything about it.
    pub policies: Pin,
    /// When it came in.
    pub arrived: Moment,
}

/// From a request to an answer that has begun.
pub async fn answer(app: &Arc<App>, visit: Visit, request: &Request) -> Result<Answer, Refusal> {
    visit.seat.caller().check_model(app.model_name(request.adapter))?; //                     403 for another's adapter
    match &request.input {
        Input::Batch(prompts) => batch(app, visit, request, prompts).await,
        _ => one(app, visit, request).await,
    }
}

/// Several prompts are several requests, each with a seat of its own; their answers are one.
async fn batch(
    app: &Arc<App>,
    visit: Visit,
    request: &Request,
    prompts: &[Input],
) -> Result<Answer, Refusal> {
    let Visit { seat, policies, arrived } = visit;
    let mut seats = vec![seat];
    for _ in 1..prompts.len() {
        seats.push(app.enter(seats[0].caller())?);
    }
    let mut answers = Vec::with_capacity(prompts.len());
    for (number, (prompt, seat)) in prompts.iter().zip(seats).enumerate() {
        let id = if number == 0 { request.id.clone() } else { format!("{}-{number}", request.id) };
        let part = Request { id, input: prompt.clone(), ..request.clone() };
        let visit = Visit { seat, policies: policies.clone(), arrived };
        answers.push(one(app, visit, &part).await?);
    }
    let first = answers.remove(0);
    Ok(first.joined_by(answers))
}

async fn one(app: &Arc<App>, visit: Visit, request: &Request) -> Result<Answer, Refusal> {
    let Visit { seat, policies, arrived } = visit;
    let prompt = render::prompt(app, request)?; //                                            template, tokens, block names
    seat.charge_prompt(prompt.tokens.len() as u32, app.ctx.now())?; //                        429 beyond the limit of a key
    let (policies, wishes) = hints::by_session(policies, request, &prompt, app.frame())?; // * no answer: no hints
    let wishes = hints::within(wishes, seat.caller().ceiling()); //                           no more than the key may ask for
    let mut row = row::request(request, &prompt, &wishes); //                                 what the next two are shown
    let place = admit::enter(app, &policies, &mut row).await?; //                           * no answer: it comes in
    let routed = choose(app, &policies, &prompt, &row)?; //                                 * no answer: the built-in
    let turn = retain::turn(app, &prompt, &wishes); //                                        what retain* will be told, if asked
    let prepared = app.speculation.arrived(wishes.numbers.session); //                        nothing is prepared for it any more
    let pinned = pin(app, (seat, place), policies, (request, prompt, &wishes, routed), arrived);
    let answer = start(pinned, request, &wishes, turn)?; //                                   [ schedule* → kv → engine ]↺ on the worker's thread
    Ok(answer.between(prepared, Next::of(app, request, &wishes))) //                          what its end prepares
}

/// Pins the active generation, and in it the chain whose rule the request fits.
pub fn policies(app: &App, model: &str, tenant: &str, headers: &HeaderMap) -> Pin {
    // Rules are the operator's: they may be about any header, not only those that policies read.
    let headers = auth::without_credentials(headers);
    app.generations.pin(&Subject { model, tenant, headers: &headers })
}

fn choose(app: &App, policies: &Pin, prompt: &Prompt, row: &Table) -> Result<Routed, Refusal> {
    let fleet = (app.workers.as_slice(), app.prefixes.as_ref());
    route::choose(policies, fleet, (prompt, row), app.config.kv.block_tokens, app.frame())
}

fn pin(
    app: &Arc<App>,
    (seat, place): (Seat, Place),
    policies: Pin,
    (request, prompt, wishes, routed): (&Request, Prompt, &Wishes, Routed),
    arrived: Moment,
) -> Pinned {
    tracing::debug!(
        request = %request.id,
        worker = %app.workers[routed.worker].name,
        generation = policies.id().0,
        chain = %policies.chain(),
        decided_by = %routed.decided_by,
        overlap_tokens = routed.overlap_tokens,
        prefill = ?routed.prefill,
        "request routed"
    );
    let (app, id) = (Arc::clone(app), request.id.clone());
    Pinned {
        app,
        seat,
        place,
        policies,
        prompt,
        hints: wishes.numbers,
        routed,
        prefilling: None,
        id,
        arrived,
    }
}

/// Starts a sequence for each choice on the chosen worker.
fn start(
    mut pinned: Pinned,
    request: &Request,
    wishes: &Wishes,
    turn: Option<Arc<Turn>>,
) -> Result<Answer, Refusal> {
    let app = Arc::clone(&pinned.app);
    let prefilled = prefill(&mut pinned, request, (wishes, turn.clone()));
    let prompt = &pinned.prompt;
    let worker = &app.workers[pinned.routed.worker];
    let mut choices = Vec::with_capacity(request.choices as usize);
    let mut resumed = resume::resumed(&app, request, prompt)?;
    for number in 0..request.choices {
        // Room for the beginning, every token and the end: the worker never waits for a reader.
        let (events, received) = mpsc::channel(prompt.output_tokens_max as usize + 2);
        let begun = worker.submit(Start {
            id: app.next_sequence(),
            tokens: prompt.tokens.clone(),
            blocks: Arc::clone(&prompt.blocks),
            salt: prompt.salt,
            expected_tokens: pinned.routed.overlap_tokens,
            adapter: prompt.adapter,
            sampling: choice_sampling(&request.sampling, number, resumed.as_ref()),
            output_tokens_max: prompt.output_tokens_max,
            stop_tokens: Arc::clone(&app.model.stop_tokens),
            constraint: prompt.guide.as_ref().map(Guide::begin),
            hints: pinned.hints,
            attributes: wishes.attributes.clone(),
            turn: turn.clone(),
            handoff: prefilled.clone().map(Handoff::Take),
            resumed: resumed.take(),
            announced: request.begins_early && number == 0,
            ahead: false,
            arrived: pinned.arrived,
            events,
        });
        if !begun {
            return Err(Refusal::Draining);
        }
        choices.push(choice(&app, request, prompt, received));
    }
    Ok(Answer::new(pinned, choices))
}

/// Has another worker compute the prompt, where that was decided; what it computed is handed to the one that answers.
fn prefill(
    pinned: &mut Pinned,
    request: &Request,
    (wishes, turn): (&Wishes, Option<Arc<Turn>>),
) -> Option<Taker> {
    let (app, prompt) = (&pinned.app, &pinned.prompt);
    let Prefill { worker, blocks } = pinned.routed.prefill.clone()?;
    let (events, received) = mpsc::channel(1);
    let (giver, taker) = handoff(blocks, Arc::clone(&app.handoffs));
    let begun = app.workers[worker].submit(Start {
        id: app.next_sequence(),
        tokens: prompt.tokens.clone(),
        blocks: Arc::clone(&prompt.blocks),
        salt: prompt.salt,
        expected_tokens: 0,
        adapter: prompt.adapter,
        sampling: request.sampling.clone(),
        output_tokens_max: 0,
        stop_tokens: Arc::clone(&app.model.stop_tokens),
        constraint: None,
        // The session ends with the answer.
        hints: SequenceHints { session_final: false, ..pinned.hints },
        attributes: wishes.attributes.clone(),
        turn,
        handoff: Some(Handoff::Give(giver)),
        resumed: None,
        announced: false,
        ahead: false,
        arrived: pinned.arrived,
        events,
    });
    pinned.prefilling = Some(received);
    begun.then_some(taker)
}

fn choice(
    app: &App,
    request: &Request,
    prompt: &Prompt,
    events: mpsc::Receiver<crate::worker::Event>,
) -> Choice {
    // A text that no template made has no parts.
    let (family, tools) = (app.model.family, request.tools.as_deref());
    let parser =
        (request.input == Input::Conversation).then(|| OutputParser::new(family, tools, prompt.in_reasoning));
    let detokenizer = Detokenizer::new(Arc::clone(&app.model.tokenizer), family);
    let stop = StopMatcher::new(&request.stop);
    Choice::new(events, detokenizer, stop, parser, request.sampling.logprobs.is_some())
}

fn choice_sampling(sampling: &SamplingParams, number: u32, resumed: Option<&Resumed>) -> SamplingParams {
    let mut own = sampling.clone();
    let seed = resumed.map_or(own.seed, |resumed| resumed.seed);
    own.seed = seed.wrapping_add(number.into());
    own
}
