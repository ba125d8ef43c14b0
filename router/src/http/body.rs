//! Request bodies: JSON under a size limit, with errors that name the field.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::RequestExt;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError};
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::error::Category;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use super::object::Object;
use super::state::{AppState, tenant};
use super::underway::{Sending, bytes_of_head};
use super::weight;
use crate::connections::CutShort;

/// For a body as a whole, and for each further piece of it: a client that sends slowly holds memory.
const WHOLE_PATIENCE: Duration = Duration::from_secs(60);
const PIECE_PATIENCE: Duration = Duration::from_secs(30);

/// What is made room for at first, and at least.
const FIRST_BYTES: usize = 1 << 10;

/// A body that has come. What it takes counts among the bodies under way for as long as this lasts.
#[derive(Debug)]
pub(super) struct Whole {
    bytes: Vec<u8>,
    _sending: Sending,
}

impl Whole {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        parse(&self.bytes)
    }
}

/// Waits for the whole body of a request that says that it is JSON. A layer that has looked at it may have left it here.
pub(super) async fn whole(mut request: Request, state: &AppState) -> Result<Whole, ApiError> {
    if let Some(whole) = request.extensions_mut().remove::<Arc<Whole>>().and_then(Arc::into_inner) {
        return Ok(whole);
    }
    if !is_json(request.headers()) {
        return Err(ApiError::Body {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            kind: "unsupported_media_type",
            place: None,
            reason: "the body must be JSON; send it with `Content-Type: application/json`".to_owned(),
        });
    }
    // Whoever announces too much is told before sending it.
    if request.body().size_hint().lower() > state.config.payload_limit as u64 {
        return Err(too_large());
    }
    let refused = |refusal| {
        state.counts.asked();
        ApiError::from(state.counts.refused(refusal))
    };
    let sending = state.underway.begin(&tenant(&request)?, bytes_of_head(request.headers())).map_err(refused)?;
    let body = request.into_limited_body();
    let bytes = tokio::select! {
        biased;
        bytes = gather(body, state.config.payload_limit, |more| sending.grow(more).map_err(refused)) => bytes,
        refusal = sending.evicted() => Err(refused(refusal)),
        () = state.health.drained() => Err(ApiError::STOPPING),
    }?;
    if !weight::fits(&bytes, weight::limit(state.config.payload_limit)) {
        return Err(too_heavy());
    }
    Ok(Whole { bytes, _sending: sending })
}

/// All bytes of a body, as long as its client keeps sending. `grow` is asked before more memory is taken.
async fn gather(
    mut body: Body,
    most: usize,
    grow: impl Fn(usize) -> Result<(), ApiError>,
) -> Result<Vec<u8>, ApiError> {
    let mut gathered = Vec::new();
    let end = Instant::now() + WHOLE_PATIENCE;
    loop {
        let frame = timeout_at(end.min(Instant::now() + PIECE_PATIENCE), body.frame()).await.map_err(|_| too_slow())?;
        let Some(frame) = frame else { return Ok(gathered) };
        // Trailers mean nothing here.
        if let Ok(piece) = frame.map_err(|error| unreadable(&error))?.into_data() {
            let needed = gathered.len() + piece.len();
            if needed > gathered.capacity() {
                let doubled = (2 * gathered.capacity()).clamp(FIRST_BYTES, most.max(FIRST_BYTES));
                let capacity = doubled.max(needed);
                grow(capacity - gathered.capacity())?;
                gathered.reserve_exact(capacity - gathered.len());
            }
            gathered.extend_from_slice(&piece);
        }
    }
}

fn too_slow() -> ApiError {
    timed_out(format!(
        "the body came too slowly: send all of it within {} s, without pauses of {} s",
        WHOLE_PATIENCE.as_secs(),
        PIECE_PATIENCE.as_secs()
    ))
}

fn timed_out(reason: String) -> ApiError {
    ApiError::Body { status: StatusCode::REQUEST_TIMEOUT, kind: "timeout", place: None, reason }
}

/// `application/json` or `application/…+json`; parameters do not matter.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/").is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

fn unreadable(error: &axum::Error) -> ApiError {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<LengthLimitError>() {
            return too_large();
        }
        if error.is::<CutShort>() {
            return timed_out(format!("{CutShort}: send all of it at once"));
        }
        source = error.source();
    }
    ApiError::Body {
        status: StatusCode::BAD_REQUEST,
        kind: "unreadable_body",
        place: None,
        reason: format!("the body could not be read: {error}"),
    }
}

fn too_large() -> ApiError {
    ApiError::Body {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        kind: "payload_too_large",
        place: None,
        reason: "the body is larger than this server takes (payload_limit)".to_owned(),
    }
}

fn too_heavy() -> ApiError {
    let fold = weight::FOLD;
    ApiError::Body {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        kind: "payload_too_large",
        place: None,
        reason: format!(
            "the body has so many values that reading it takes {fold} times what bodies may have (payload_limit)"
        ),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let error = match serde_json::from_slice::<Object<T>>(body) {
        Ok(object) => return Ok(object.0),
        Err(error) => error,
    };
    if error.classify() != Category::Data {
        return Err(ApiError::Body {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_json",
            place: None,
            reason: format!("the body is not valid JSON: {error}"),
        });
    }
    // Only now is it worth knowing where: a second pass keeps track of the path.
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let located: Result<Object<T>, _> = serde_path_to_error::deserialize(&mut deserializer);
    let place = located.err().map(|error| error.path().to_string()).filter(|path| path != ".");
    Err(misshapen(place, &error))
}

/// A part of a body that has been read (a `Value`, or one that is only looked at), as a `T`; `within` is where it stands
/// in the whole, if it is not all of it.
pub(super) fn shape<'de, T: Deserialize<'de>>(
    part: impl Deserializer<'de, Error = serde_json::Error>,
    within: Option<String>,
) -> Result<T, ApiError> {
    let object: Result<Object<T>, _> = serde_path_to_error::deserialize(part);
    object.map(|object| object.0).map_err(|located: serde_path_to_error::Error<serde_json::Error>| {
        let inside = Some(located.path().to_string()).filter(|path| path != ".");
        let places: Vec<String> = within.into_iter().chain(inside).collect();
        misshapen((!places.is_empty()).then(|| places.join(".")), located.inner())
    })
}

fn misshapen(place: Option<String>, error: &serde_json::Error) -> ApiError {
    let named = place.as_ref().map(|place| format!("`{place}`: ")).unwrap_or_default();
    ApiError::Body {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        kind: "validation",
        reason: format!("Input validation error: {named}{error}"),
        place,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::http::error::Dialect;
    use crate::validation::Parameters;

    #[test]
    fn json_is_recognized_by_its_media_type() {
        let with = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        for json in ["application/json", "APPLICATION/JSON", "application/vnd.api+json", "application/json; charset=x"]
        {
            assert!(with(json), "{json}");
        }
        for other in ["text/plain", "json", "application/jsonl", "multipart/form-data; boundary=x", ""] {
            assert!(!with(other), "{other}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        #[derive(Debug, serde::Deserialize)]
        struct Outer {
            #[expect(dead_code, reason = "only its errors are looked at")]
            parameters: Parameters,
        }
        let refused = |body: &str| parse::<Outer>(body.as_bytes()).unwrap_err();
        let error = refused(r#"{"parameters":{"stop":["a",5]}}"#);
        assert_eq!(error.status(Dialect::Tgi), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(error.to_string().contains("`parameters.stop[1]`"), "{error}");
        assert!(refused("{}").to_string().contains("missing field `parameters`"));
        assert_eq!(refused("{\"parameters\":").status(Dialect::Tgi), StatusCode::BAD_REQUEST);
    }
}
