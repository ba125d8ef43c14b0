//! The original's generation routes.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;

use super::admission::{Places, admit, receive, receive_text};
use super::collect::{Answer, Sequence, collect};
use super::error::ApiError;
use super::headers;
use super::kept::until_sent;
use super::sse::{self, Encode};
use super::state::{AppState, Arrival};
use super::wire::{
    BestOfSequence, CompatRequest, Details, GenerateRequest, GenerateResponse, PrefillToken, SimpleToken,
    StreamDetails, StreamError, StreamEvent, WireToken, finish_reason, json_bytes,
};
use crate::engine::api::{Failed, Finished, Prefilled, Token};
use crate::tokenizer::EncodeError;
use crate::validation::{Ask, Names, Parameters, Prompt, ValidationError};

type AppResult = Result<Response, ApiError>;

/// `POST /generate`.
pub(super) async fn generate(State(state): State<Arc<AppState>>, request: Request) -> AppResult {
    let (arrival, place, request) = receive(&state, request).await?;
    let Whole { headers, json, places } = answer_whole(&state, request, arrival, place).await?;
    Ok(until_sent(&state, (headers, [JSON], json).into_response(), places))
}

/// `POST /generate_stream`.
pub(super) async fn generate_stream(State(state): State<Arc<AppState>>, request: Request) -> AppResult {
    let (arrival, place, request) = receive(&state, request).await?;
    answer_streamed(&state, request, arrival, place).await
}

/// `POST /`: either, by its `stream` field. A whole answer is a list of one; text comes back with its prompt.
pub(super) async fn compat(State(state): State<Arc<AppState>>, request: Request) -> AppResult {
    let (arrival, place, request) = receive(&state, request).await?;
    compat_answer(&state, request, arrival, place).await
}

pub(super) async fn compat_answer(
    state: &AppState,
    CompatRequest { inputs, parameters, stream }: CompatRequest,
    arrival: Arrival,
    place: Places,
) -> AppResult {
    let (inputs, mut parameters) = GenerateRequest { inputs, parameters }.into_parts();
    parameters.return_full_text.get_or_insert(true);
    let request = GenerateRequest { inputs, parameters: Some(parameters) };
    if stream.unwrap_or_default() {
        return answer_streamed(state, request, arrival, place).await;
    }
    let Whole { headers, json, places } = answer_whole(state, request, arrival, place).await?;
    let list = [b"[", json.as_slice(), b"]"].concat();
    Ok(until_sent(state, (headers, [JSON], list).into_response(), places))
}

/// `POST /tokenize`: the tokens of `inputs`; parameters have no effect.
pub(super) async fn tokenize(State(state): State<Arc<AppState>>, request: Request) -> AppResult {
    let (place, GenerateRequest { inputs, .. }) = receive_text(&state, request).await?;
    let text = Arc::clone(&state.text);
    // Written where it is encoded: a long text's answer takes longer than a thread that serves others may be away.
    let work = move || {
        let spans = text.encode_spans(&inputs)?.into_iter();
        Ok(json_bytes(&spans.map(|span| SimpleToken::of(span, &inputs)).collect::<Vec<_>>()))
    };
    let written: Result<_, EncodeError> = state.validator.pool().run(work).await.map_err(ValidationError::from)?;
    let written = written.map_err(|error| ApiError::field("inputs", error.to_string()))?;
    Ok(until_sent(&state, ([JSON], written).into_response(), place))
}

const JSON: (HeaderName, &str) = (header::CONTENT_TYPE, "application/json");

fn ask(inputs: String, parameters: Parameters, stream: bool, arrival: Arrival) -> Ask {
    Ask {
        prompt: Prompt::Text(inputs),
        parameters,
        stream,
        names: &Names::GENERATE,
        request_id: arrival.request_id,
        tenant: arrival.tenant,
        deadline: arrival.deadline,
        received: arrival.received,
    }
}

/// An answer that is not streamed.
struct Whole {
    headers: HeaderMap,
    json: Vec<u8>,
    places: Arc<Places>,
}

async fn answer_whole(
    state: &AppState,
    request: GenerateRequest,
    arrival: Arrival,
    place: Places,
) -> Result<Whole, ApiError> {
    let (inputs, parameters) = request.into_parts();
    let shape = Shape::of(&parameters);
    let admitted = admit(state, ask(inputs, parameters, false, arrival), place).await?;
    let answer = collect(admitted, shape.details).await?;
    Ok(Whole {
        headers: headers::of_answer(&state.compute_type, &answer.cost()),
        json: shape.write(state, &answer),
        places: answer.ticket.places(),
    })
}

async fn answer_streamed(state: &AppState, request: GenerateRequest, arrival: Arrival, place: Places) -> AppResult {
    let (inputs, parameters) = request.into_parts();
    let details = parameters.details.unwrap_or_default();
    let full_text = parameters.return_full_text.unwrap_or_default();
    let mut admitted = admit(state, ask(inputs, parameters, true, arrival), place).await?;
    let encoder = Encoder {
        index: 0,
        input_length: admitted.ticket.prompt_tokens,
        details,
        prompt: full_text.then(|| std::mem::take(&mut admitted.prompt)),
    };
    let headers = headers::of_stream(&state.compute_type, admitted.ticket.characters);
    let places = admitted.ticket.places();
    Ok(sse::respond(state, sse::chunks(admitted, encoder), headers, places))
}

/// Which parts of a whole answer were asked for.
#[derive(Clone, Copy, Debug)]
struct Shape {
    details: bool,
    full_text: bool,
    top_tokens: bool,
}

impl Shape {
    fn of(parameters: &Parameters) -> Self {
        let prefill = parameters.decoder_input_details.unwrap_or_default();
        Self {
            details: parameters.details.unwrap_or_default() || prefill,
            full_text: parameters.return_full_text.unwrap_or_default(),
            top_tokens: parameters.top_n_tokens.unwrap_or_default() > 0,
        }
    }

    fn write(self, state: &AppState, answer: &Answer) -> Vec<u8> {
        let prefill = prefill_tokens(state, answer);
        let best = answer.best();
        let generated_text = self.text(&answer.prompt, best);
        let details = self.details.then(|| Details {
            finish_reason: finish_reason(best.finished.reason),
            generated_tokens: best.finished.generated_tokens,
            seed: best.finished.seed,
            prefill: &prefill,
            tokens: best.tokens.iter().map(WireToken::from).collect(),
            best_of_sequences: answer.others().map(|other| self.loser(answer, other, &prefill)).collect(),
            top_tokens: self.top_tokens(best),
        });
        serde_json::to_vec(&GenerateResponse { generated_text: &generated_text, details })
            .expect("strings, numbers and lists of them are always JSON")
    }

    fn loser<'a>(self, answer: &Answer, other: &'a Sequence, prefill: &'a [PrefillToken]) -> BestOfSequence<'a> {
        BestOfSequence {
            generated_text: self.text(&answer.prompt, other),
            finish_reason: finish_reason(other.finished.reason),
            generated_tokens: other.finished.generated_tokens,
            seed: other.finished.seed,
            prefill,
            tokens: other.tokens.iter().map(WireToken::from).collect(),
            top_tokens: self.top_tokens(other),
        }
    }

    fn text(self, prompt: &str, sequence: &Sequence) -> String {
        let prompt = if self.full_text { prompt } else { "" };
        format!("{prompt}{}", sequence.finished.generated_text)
    }

    fn top_tokens(self, sequence: &Sequence) -> Vec<Vec<WireToken<'_>>> {
        if self.top_tokens { sequence.tokens.iter().map(top_tokens).collect() } else { Vec::new() }
    }
}

fn top_tokens(token: &Token) -> Vec<WireToken<'_>> {
    token.top_tokens.iter().map(WireToken::from).collect()
}

/// The prompt's tokens with their logprobs, if they were asked for.
fn prefill_tokens(state: &AppState, answer: &Answer) -> Vec<PrefillToken> {
    let known = &answer.prefilled.prompt_logprobs;
    // A prompt of one token has no logprob at all; a longer one without any was not asked for them.
    let logprobs = if known.is_empty() && answer.prompt_ids.len() == 1 { &[None] } else { known.as_slice() };
    let tokens = answer.prompt_ids.iter().zip(logprobs);
    tokens.map(|(&id, &logprob)| PrefillToken { id, text: state.text.decode(&[id], false), logprob }).collect()
}

/// The original's stream of one sequence.
struct Encoder {
    index: u32,
    input_length: u32,
    details: bool,
    /// To be repeated before the generated text.
    prompt: Option<String>,
}

impl Encode for Encoder {
    fn prefilled(&mut self, _: &Prefilled, _: &mut BytesMut) {}

    fn token(&mut self, _: usize, token: &Token, end: Option<&Finished>, out: &mut BytesMut) {
        self.index += 1;
        let full_text = match (end, &self.prompt) {
            (Some(finished), Some(prompt)) => Some(format!("{prompt}{}", finished.generated_text)),
            _ => None,
        };
        let details = end.filter(|_| self.details).map(|finished| StreamDetails {
            finish_reason: finish_reason(finished.reason),
            generated_tokens: finished.generated_tokens,
            seed: finished.seed,
            input_length: self.input_length,
        });
        let generated_text = full_text.as_deref().or(end.map(|finished| finished.generated_text.as_str()));
        let event = StreamEvent {
            index: self.index,
            token: WireToken::from(token),
            top_tokens: top_tokens(token),
            generated_text,
            details,
        };
        sse::write_event(out, &event);
    }

    fn failed(&mut self, failed: &Failed, out: &mut BytesMut) {
        let (error, error_type) = match failed {
            Failed::Generation(_) => (failed.to_string(), "generation"),
            Failed::TimedOut => (failed.to_string(), "timeout"),
            Failed::Incomplete => ("Incomplete generation stream".to_owned(), "incomplete_generation_stream"),
        };
        sse::write_event(out, &StreamError { error: &error, error_type });
    }
}
