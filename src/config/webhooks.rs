//! Settings of webhooks.

use clap::Args;

/// Webhooks, which send events to other systems.
#[derive(Args, Clone, Debug, Default)]
pub struct WebhookConfig {
    /// Send webhooks to private, loopback and link-local addresses too, and over plain HTTP
    #[arg(long, env = "WEBHOOK_ALLOW_PRIVATE")]
    pub webhook_allow_private: bool,
}
