//! The routes of the document and of the page that shows it, Swagger UI.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::Path,
    http::{
        HeaderValue,
        header::{
            CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_FRAME_OPTIONS,
        },
    },
    middleware::map_response,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use super::{
    document::{complete, for_clients},
    events,
};
use crate::{
    http::error::{ApiError, Code},
    model::Error,
};

pub const DOCUMENT_PATH: &str = "/v3/api-docs";
/// The document for generators of clients, whose classes have names of Latin letters.
const CLIENTS_PATH: &str = "/v3/api-docs/clients";
/// The AsyncAPI document of the events.
const EVENTS_DOCUMENT_PATH: &str = "/v3/event-docs";
const PAGE_PATH: &str = "/swagger-ui/index.html";
const JSON: &str = "application/json";
/// May be stored, but not used without asking: it changes with the program.
const REVALIDATED: &str = "no-cache";

/// The page runs the scripts of this service and calls this service alone: it has the dashboard's origin, where a foreign script
/// could act as an operator who is signed in. (Its scripts set styles.)
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Serves the document and the page. The page's assets are in the binary. `tokens`: users need one.
pub fn router<S: Clone + Send + Sync + 'static>(document: OpenApi, tokens: bool) -> Router<S> {
    let document = complete(document, tokens);
    let clients = Bytes::from(for_clients(document.clone()).to_string());
    let document = Bytes::from(document.to_string());
    let json = |document: Bytes| get(async move || ([(CONTENT_TYPE, JSON), (CACHE_CONTROL, REVALIDATED)], document));
    // Without a validator: the page must not call the network.
    let config = Arc::new(Config::new([DOCUMENT_PATH]).validator_url("none").use_base_layout());
    Router::new()
        .route(DOCUMENT_PATH, json(document))
        .route(CLIENTS_PATH, json(clients))
        .route(EVENTS_DOCUMENT_PATH, json(Bytes::from(events::document().to_string())))
        .route("/swagger-ui", get(to_page))
        .route("/swagger-ui/", get(to_page))
        .route("/swagger-ui.html", get(to_page))
        .route("/swagger-ui/{*file}", get(async move |Path(file): Path<String>| asset(&file, config)))
        .layer(map_response(with_policy))
}

async fn to_page() -> Redirect {
    Redirect::to(PAGE_PATH)
}

pub fn asset(file: &str, config: Arc<Config<'static>>) -> Response {
    match utoipa_swagger_ui::serve(file, config) {
        Ok(Some(file)) => {
            let fixed = [(CACHE_CONTROL, REVALIDATED), (X_FRAME_OPTIONS, "DENY")];
            let mut response = ([(CONTENT_TYPE, file.content_type)], fixed, file.bytes).into_response();
            if file.gzpipped {
                response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response
        }
        Ok(None) => ApiError::from(Code::NotFound).into_response(),
        Err(error) => ApiError::from(Error::Internal(anyhow::anyhow!("{error}"))).into_response(),
    }
}

async fn with_policy(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, PAGE_POLICY);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
