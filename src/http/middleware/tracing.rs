//! The span of a request, as part of its caller's trace. Without traces the layer is absent.

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::Response,
};
use opentelemetry::{
    Context, KeyValue,
    context::FutureExt,
    trace::{Status, TraceContextExt},
};

use crate::{
    http::{error::Failure, request_id::RequestId},
    telemetry::traces,
};

/// The layer.
pub async fn trace(request: Request, next: Next) -> Response {
    let Some(context) = begun(&request) else { return next.run(request).await };
    let mut unanswered = Unanswered(Some(context.clone()));
    let response = next.run(request).with_context(context).await;
    unanswered.answered(&response);
    response
}

fn begun(request: &Request) -> Option<Context> {
    let extensions = request.extensions();
    let route = extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    // Known methods only, so that names of spans stay few.
    let method = match request.method() {
        known @ (&Method::GET | &Method::HEAD | &Method::POST | &Method::PUT | &Method::PATCH | &Method::DELETE) => {
            known.as_str().to_owned()
        }
        _ => "HTTP".to_owned(),
    };
    let name = route.map_or_else(|| method.clone(), |route| format!("{method} {route}"));
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.scheme", "http"),
        KeyValue::new("url.path", request.uri().path().to_owned()),
        KeyValue::new("firstcome.request_id", RequestId::of(extensions)),
    ];
    attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
    if let Some(ConnectInfo(peer)) = extensions.get::<ConnectInfo<SocketAddr>>() {
        attributes.push(KeyValue::new("network.peer.address", peer.ip().to_string()));
    }
    traces::request(request.headers(), name, attributes)
}

/// The span of an unanswered request. Dropped before the reply, because of a timeout or a panic, it ends as an error.
struct Unanswered(Option<Context>);

impl Unanswered {
    fn answered(&mut self, response: &Response) {
        let Some(context) = self.0.take() else { return };
        let (span, status) = (context.span(), response.status());
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if let Some(Failure { code, .. }) = response.extensions().get() {
            span.set_attribute(KeyValue::new("error.type", code.as_str()));
        }
        if status.is_server_error() {
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new("error.type", "unanswered"));
            context.span().set_status(Status::error("it was given up before there was an answer"));
            context.span().end();
        }
    }
}
