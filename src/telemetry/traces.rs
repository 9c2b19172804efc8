//! Traces, exported to an OpenTelemetry collector by OTLP over HTTP.
//!
//! Spans are created through OpenTelemetry's API, not through `tracing`, so that disabled tracing costs one atomic
//! load. A thread exports the spans from a bounded queue. A full queue drops spans, and an outage of the collector is
//! logged once.
//!
//! There is a span for each request (`POST /api/v1/orders`, whose parent is the caller's span in W3C's `traceparent`),
//! each call of a script (`EVALSHA order_place`, a child of the first request that it decides, with links to the
//! others), each call of a gateway, and each batch of the projection. Attributes follow OpenTelemetry's conventions;
//! our own begin with `firstcome.`.

use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter},
};
use reqwest::{Client, Url, redirect};
use tokio::runtime::Handle;

use crate::config::{Secret, TelemetryConfig};

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the process waits for the last export.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Request ids in the span of a projected batch.
const MAX_REQUEST_IDS: usize = 64;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether tracing is on.
pub fn on() -> bool {
    TRACER.get().is_some()
}

/// Exports the spans of this process until it is stopped.
pub struct Delivery(SdkTracerProvider);

/// Starts tracing, if a collector is configured. To be called once, within the runtime.
///
/// # Errors
/// The URL of the collector is invalid.
pub fn start(config: &TelemetryConfig) -> anyhow::Result<Option<Delivery>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let Some(collector) = collector(config)?.filter(|_| !disabled) else { return Ok(None) };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = Client::builder().timeout(EXPORT_TIMEOUT).redirect(redirect::Policy::none());
    if collector.scheme() == "http" {
        // No root certificates: a slim image may have none to load.
        client = client.tls_certs_only([]);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client.build().map_err(reqwest::Error::without_url).context("no HTTP client for traces")?)
        .with_endpoint(collector.as_str())
        .build()
        .context("traces can't be exported")?;
    let exporter =
        OnRuntime { exporter: Arc::new(exporter), runtime: Handle::current(), failing: AtomicBool::new(false) };
    let named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|attributes| attributes.contains("service.name="));
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if !named {
        resource = resource.with_service_name("firstcome");
    }
    // The SDK reads OTEL_TRACES_SAMPLER and OTEL_BSP_* by itself.
    let provider = SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
    if TRACER.set(provider.tracer("firstcome")).is_err() {
        anyhow::bail!("traces are started already");
    }
    Ok(Some(Delivery(provider)))
}

/// The URL of the collector for traces; `None` if none is configured.
fn collector(config: &TelemetryConfig) -> anyhow::Result<Option<Url>> {
    let given = |url: &Option<Secret>| url.as_ref().map(|url| url.expose().to_owned()).filter(|url| !url.is_empty());
    let traces = given(&config.otel_exporter_otlp_traces_endpoint);
    let base =
        given(&config.otel_exporter_otlp_endpoint).map(|base| format!("{}/v1/traces", base.trim_end_matches('/')));
    let Some(url) = traces.or(base) else { return Ok(None) };
    // Without the parser's error, which may quote a password.
    let url = Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.context("OTEL_EXPORTER_OTLP_ENDPOINT is not an http:// or https:// URL")?;
    // The HTTP client logs the address that it connects to.
    let secret = !url.username().is_empty() || url.password().is_some();
    anyhow::ensure!(
        !secret,
        "OTEL_EXPORTER_OTLP_ENDPOINT holds a user or a password: OTEL_EXPORTER_OTLP_HEADERS is for it"
    );
    Ok(Some(url))
}

impl Delivery {
    /// Exports the remaining spans, for at most [`FLUSH_TIMEOUT`].
    pub async fn stop(self) {
        // On a blocking thread: the exporting thread needs this runtime.
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        if !matches!(stopped, Ok(Ok(()))) {
            tracing::debug!("the last traces were not delivered");
        }
    }
}

/// Runs the exporter on the runtime that its HTTP client needs: the exporting thread is not part of it.
#[derive(Debug)]
struct OnRuntime {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
    failing: AtomicBool,
}

impl SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = self.exporter.clone();
        let delivered = self.runtime.spawn(async move { exporter.export(batch).await }).await;
        let delivered = delivered.unwrap_or_else(|_| Err(OTelSdkError::InternalFailure("the process ends".to_owned())));
        match &delivered {
            Ok(()) if self.failing.swap(false, Ordering::Relaxed) => {
                tracing::info!("the collector takes traces again");
            }
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "the collector does not take traces: they are dropped until it does");
            }
            _ => {}
        }
        delivered
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Called before the first export, while this is the only reference.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// Reads `traceparent` and `tracestate`.
struct Headers<'a>(&'a HeaderMap);
/// Writes `traceparent` and `tracestate`.
struct HeadersMut<'a>(&'a mut HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

/// Starts the span of a received request. The caller ends it; it is [`here`] for the code that runs with the context.
pub fn request(headers: &HeaderMap, name: impl Into<Cow<'static, str>>, attributes: Vec<KeyValue>) -> Option<Context> {
    let tracer = TRACER.get()?;
    let caller = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
    Some(caller.with_span(span.start_with_context(tracer, &caller)))
}

/// The current span. Boxed, because thousands of waiting requests store one, usually `None`.
pub fn here() -> Option<Box<SpanContext>> {
    TRACER.get()?;
    Context::map_current(|context| context.has_active_span().then(|| Box::new(context.span().span_context().clone())))
}

/// A span that ends when it is dropped; empty while tracing is off.
pub struct Work(Option<Box<Span>>);

/// Starts the span of a call of a script that decides `requests` requests, with the spans `asked_by`.
pub fn script<'a>(
    name: &'static str,
    partition: u16,
    requests: usize,
    asked_by: impl IntoIterator<Item = &'a SpanContext>,
) -> Work {
    let Some(tracer) = TRACER.get() else { return Work(None) };
    let mut asked_by = asked_by.into_iter().cloned();
    let parent = asked_by.next().map_or_else(Context::new, |first| Context::new().with_remote_span_context(first));
    let span = tracer
        .span_builder(format!("EVALSHA {name}"))
        .with_kind(SpanKind::Client)
        .with_links(asked_by.map(|other| Link::new(other, Vec::new(), 0)).collect())
        .with_attributes([
            KeyValue::new("db.system.name", "redis"),
            KeyValue::new("db.operation.name", "EVALSHA"),
            KeyValue::new("db.stored_procedure.name", name),
            KeyValue::new("firstcome.partition", i64::from(partition)),
            KeyValue::new("firstcome.requests", requests as i64),
        ]);
    Work(Some(Box::new(span.start_with_context(tracer, &parent))))
}

/// Starts the span of a call to the gateway of a payment type.
pub fn gateway(kind: &'static str, method: &'static str, route: &'static str, request_id: &str) -> Work {
    let Some(tracer) = TRACER.get() else { return Work(None) };
    let span = tracer.span_builder(format!("{method} {route}")).with_kind(SpanKind::Client).with_attributes([
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.template", route),
        KeyValue::new("firstcome.gateway", kind),
        KeyValue::new("firstcome.request_id", request_id.to_owned()),
    ]);
    Work(Some(Box::new(span.start_with_context(tracer, &Context::current()))))
}

/// Starts the span of a batch of the projection, with the ids of its first [`MAX_REQUEST_IDS`] requests.
pub fn projection<'a>(partition: u16, events: usize, requests: impl IntoIterator<Item = &'a str>) -> Work {
    let Some(tracer) = TRACER.get() else { return Work(None) };
    let requests = requests.into_iter().take(MAX_REQUEST_IDS).map(|id| StringValue::from(id.to_owned())).collect();
    let span = tracer.span_builder("project").with_kind(SpanKind::Consumer).with_attributes([
        KeyValue::new("firstcome.partition", i64::from(partition)),
        KeyValue::new("firstcome.events", events as i64),
        KeyValue::new("firstcome.request_ids", Value::Array(Array::String(requests))),
    ]);
    Work(Some(Box::new(span.start_with_context(tracer, &Context::new()))))
}

impl Work {
    /// Marks the span as failed.
    pub fn failed(&mut self, reason: impl FnOnce() -> String) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(reason()));
        }
    }

    /// Ends the span with a result, and returns the result.
    pub fn ends<T, E: std::fmt::Display>(mut self, result: Result<T, E>) -> Result<T, E> {
        if let Err(error) = &result {
            self.failed(|| error.to_string());
        }
        result
    }

    /// Writes the span into the headers of an outgoing request, as the parent of the receiver's spans.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(span) = &self.0 {
            let context = Context::new().with_remote_span_context(span.span_context().clone());
            TraceContextPropagator::new().inject_context(&context, &mut HeadersMut(headers));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_absent_without_collector() {
        let mut config = TelemetryConfig::default();
        assert!(collector(&config).unwrap().is_none());
        config.otel_exporter_otlp_endpoint = Some(Secret::new(""));
        assert!(collector(&config).unwrap().is_none());
        assert!(!on() && here().is_none() && request(&HeaderMap::new(), "GET /", Vec::new()).is_none());
        assert!(script("order_place", 0, 1, []).0.is_none());
    }

    #[test]
    fn collector_url_completed_when_base_only() {
        let mut config = TelemetryConfig::default();
        for base in ["http://collector:4318", "http://collector:4318/"] {
            config.otel_exporter_otlp_endpoint = Some(Secret::new(base));
            assert_eq!(collector(&config).unwrap().unwrap().as_str(), "http://collector:4318/v1/traces");
        }
        config.otel_exporter_otlp_traces_endpoint = Some(Secret::new("https://collector/traces"));
        assert_eq!(collector(&config).unwrap().unwrap().as_str(), "https://collector/traces");
        for bad in ["hunter2", "ftp://hunter2/", "http://hunter2@collector/", "http://a:hunter2@collector/"] {
            config.otel_exporter_otlp_traces_endpoint = Some(Secret::new(bad));
            assert!(!format!("{:#}", collector(&config).unwrap_err()).contains("hunter2"));
        }
    }
}
