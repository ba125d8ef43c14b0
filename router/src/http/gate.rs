//! What a request must pass before its body is read: the API key, and a server that can take it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error::{ApiError, Dialect};
use super::state::AppState;
use crate::health::Phase;
use crate::tenants::{Tenant, Tenants};

/// Around every route that does work. The handler finds the tenant among the request's extensions.
pub(super) async fn guard(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let checked = tenant(&state.tenants, request.headers())
        .and_then(|tenant| check_phase(&state, request.method()).map(|()| tenant));
    match checked {
        Ok(tenant) => {
            request.extensions_mut().insert(tenant);
            next.run(request).await
        }
        Err(error) => error.into_response(Dialect::of(request.uri().path())),
    }
}

/// Around every route: a server that is about to stop asks its clients to come back over another connection, which will
/// lead them elsewhere. Connections that are kept would hold them here until the end.
pub(super) async fn farewell(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    // Later versions have no such header, and other ways to say it.
    let is_told_by_header = request.version() <= Version::HTTP_11;
    let mut response = next.run(request).await;
    if is_told_by_header && matches!(state.health.phase(), Phase::Leaving | Phase::Draining) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Around routes that command the server itself.
pub(super) async fn admin(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    match tenant(&state.tenants, request.headers()) {
        Ok(tenant) if tenant.is_admin => next.run(request).await,
        Ok(_) => ApiError::Forbidden.into_response(Dialect::of(request.uri().path())),
        Err(error) => error.into_response(Dialect::of(request.uri().path())),
    }
}

/// Whose key it is: the scheme in any case, as HTTP has it; the key exactly, in a time that says nothing about it.
pub(super) fn tenant(tenants: &Tenants, headers: &HeaderMap) -> Result<Arc<Tenant>, ApiError> {
    // Two of them mean two things to a proxy and to us: neither counts.
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let only = all.next().filter(|_| all.next().is_none());
    let given = only.and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    tenants.identify(given).ok_or(ApiError::Unauthorized)
}

/// While workers are being replaced requests are taken and wait; before the first and after the last they cannot.
fn check_phase(state: &AppState, method: &Method) -> Result<(), ApiError> {
    if method != Method::POST {
        return Ok(());
    }
    match state.health.phase() {
        Phase::Serving | Phase::Recovering => Ok(()),
        // Nothing can be computed before the first limits are known.
        Phase::Leaving if state.health.limits().is_some() => Ok(()),
        Phase::Starting => Err(ApiError::loading(&state.health)),
        Phase::Leaving | Phase::Draining => Err(ApiError::STOPPING),
    }
}
