//! Traces over OTLP: spans go through a bounded queue to a task that sends them in batches.
//!
//! Whoever ends a span never waits: when the queue is full, or the receiver does not take a batch,
//! spans are lost and counted. Headers, time limit and certificates of the exporter, the resource
//! and the sampler follow the variables that OpenTelemetry names (`OTEL_EXPORTER_OTLP_HEADERS`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and so on), read by its
//! own libraries.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::{Context, KeyValue, trace::TracerProvider};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Time for the receiver to take a batch, where no variable says it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for what is queued to be sent at the end.
const LAST: Duration = Duration::from_secs(5);

/// Where traces go, and which.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// URL that batches are posted to, as it is.
    pub endpoint: String,
    /// Share of traces that begin here and are kept, 0 to 1. A trace that began elsewhere is kept
    /// if it is kept there. Without it, `OTEL_TRACES_SAMPLER` says.
    pub ratio: Option<f64>,
    /// PEM file with the certificates by which the receiver's own must be signed; the machine's
    /// where none is named.
    pub certificate: Option<PathBuf>,
    /// Name of this program in traces; `perch-gateway` where none is given.
    pub service_name: Option<String>,
    /// Tells instances of the same program apart.
    pub instance: String,
    /// Most spans that wait to be sent.
    pub queue: usize,
    /// Most spans in a batch.
    pub batch: usize,
    /// Longest wait of a span for its batch.
    pub delay: Duration,
}

impl TraceConfig {
    /// The defaults of OpenTelemetry, to this URL.
    pub fn new(endpoint: impl Into<String>, instance: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            ratio: None,
            certificate: None,
            service_name: None,
            instance: instance.into(),
            queue: 2048,
            batch: 512,
            delay: Duration::from_secs(5),
        }
    }
}

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent to {endpoint}: {why}")]
pub struct TraceError {
    endpoint: String,
    why: String,
}

/// Makes spans and sends them.
#[derive(Debug)]
pub struct Traces {
    /// Makes spans.
    pub tracer: SdkTracer,
    provider: SdkTracerProvider,
    queue: mpsc::Sender<Queued>,
    lost: Arc<AtomicU64>,
}

enum Queued {
    Span(Box<SpanData>),
    /// Send all that came before.
    Flush(oneshot::Sender<()>),
}

impl Traces {
    /// Begins to send. To be called within the async runtime.
    ///
    /// # Errors
    /// When the endpoint, or a variable, is of no use.
    pub fn start(config: &TraceConfig) -> Result<Self, TraceError> {
        let failed =
            |why: &dyn std::fmt::Display| TraceError { endpoint: config.endpoint.clone(), why: why.to_string() };
        let connector = connector(config).map_err(|why| failed(&why))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(HyperClient::new(connector, TIMEOUT, None))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&config.endpoint)
            .build();
        let mut exporter = exporter.map_err(|error| failed(&error))?;
        // The variables come last, so that they win.
        let mut resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "perch-gateway"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", config.instance.clone()),
            ])
            .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
        if let Some(name) = &config.service_name {
            resource = resource.with_service_name(name.clone());
        }
        let resource = resource.build();
        exporter.set_resource(&resource);
        let (queue, queued) = mpsc::channel(config.queue.max(1));
        let lost = Arc::<AtomicU64>::default();
        tokio::spawn(send(exporter, queued, config.batch.max(1), config.delay, Arc::clone(&lost)));
        let processor = Processor { queue: queue.clone(), lost: Arc::clone(&lost) };
        let mut provider = SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource);
        if let Some(ratio) = config.ratio {
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))));
        }
        let provider = provider.build();
        let tracer = provider.tracer("perch");
        Ok(Self { tracer, provider, queue, lost })
    }

    /// Sends what is still queued, as far as it is taken soon.
    pub async fn close(&self) {
        let (done, sent) = oneshot::channel();
        let flush = async {
            if self.queue.send(Queued::Flush(done)).await.is_ok() {
                let _ = sent.await;
            }
        };
        if tokio::time::timeout(LAST, flush).await.is_err() {
            tracing::warn!("the receiver of traces did not take the last spans in time");
        }
        let _ = self.provider.shutdown();
    }

    /// Spans that did not reach the receiver.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Collector for Traces {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let lost = ConstCounter::new(self.lost());
        let help = "Spans of traces that were lost: the queue was full, or the receiver did not take them";
        let family = encoder.encode_descriptor("perch_otlp_spans_lost", help, None, lost.metric_type())?;
        lost.encode(family)
    }
}

fn connector(config: &TraceConfig) -> Result<HttpsConnector<HttpConnector>, String> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(TIMEOUT));
    connector.enforce_http(false);
    let builder = HttpsConnectorBuilder::new();
    let builder = if config.endpoint.starts_with("https:") && config.certificate.is_none() {
        builder.with_provider_and_native_roots(ring::default_provider()).map_err(|error| error.to_string())?
    } else {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &config.certificate {
            let bad = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
                roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        builder.with_tls_config(tls.with_root_certificates(roots).with_no_client_auth())
    };
    Ok(builder.https_or_http().enable_http1().wrap_connector(connector))
}

/// Puts spans that ended into the queue.
#[derive(Debug)]
struct Processor {
    queue: mpsc::Sender<Queued>,
    lost: Arc<AtomicU64>,
}

impl SpanProcessor for Processor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.queue.try_send(Queued::Span(Box::new(span))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends spans in batches, as soon as a batch is full or its first span waited long enough.
async fn send(
    exporter: SpanExporter,
    mut queued: mpsc::Receiver<Queued>,
    most: usize,
    delay: Duration,
    lost: Arc<AtomicU64>,
) {
    let warned = Mutex::new(false);
    let mut batch: Vec<SpanData> = Vec::new();
    let mut due = tokio::time::Instant::now();
    loop {
        let next =
            if batch.is_empty() { Ok(queued.recv().await) } else { tokio::time::timeout_at(due, queued.recv()).await };
        let mut flush = None;
        let mut over = false;
        match next {
            Ok(Some(Queued::Span(span))) => {
                if batch.is_empty() {
                    due = tokio::time::Instant::now() + delay;
                }
                batch.push(*span);
                if batch.len() < most {
                    continue;
                }
            }
            Ok(Some(Queued::Flush(done))) => flush = Some(done),
            Ok(None) => over = true,
            Err(_) => {}
        }
        if !batch.is_empty() {
            let spans = std::mem::take(&mut batch);
            let count = spans.len() as u64;
            let sent = exporter.export(spans).await;
            let mut warned = warned.lock().expect("nobody panics while holding the flag");
            match sent {
                Ok(()) => *warned = false,
                Err(error) => {
                    lost.fetch_add(count, Ordering::Relaxed);
                    // Once, until it works again: there may be many.
                    if !std::mem::replace(&mut *warned, true) {
                        tracing::warn!(%error, count, "the receiver of traces did not take spans");
                    }
                }
            }
        }
        if let Some(done) = flush {
            // Nobody may wait any more.
            let _ = done.send(());
        }
        if over {
            return;
        }
    }
}
