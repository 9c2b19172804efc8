//! Settings of the payment gateways.

use clap::Args;

use super::Secret;
use crate::model::PaymentType;

/// External payment gateways. Payment types without one are paid from the balance.
#[derive(Args, Clone, Debug, Default)]
pub struct GatewayConfig {
    /// The gateway for CARD payments
    #[arg(long, env = "PAYMENT_GATEWAY_CARD_URL", hide_env_values = true)]
    pub payment_gateway_card_url: Option<Secret>,
    /// The gateway for KAKAO_PAY payments
    #[arg(long, env = "PAYMENT_GATEWAY_KAKAO_PAY_URL", hide_env_values = true)]
    pub payment_gateway_kakao_pay_url: Option<Secret>,
    /// The gateway for TOSS payments
    #[arg(long, env = "PAYMENT_GATEWAY_TOSS_URL", hide_env_values = true)]
    pub payment_gateway_toss_url: Option<Secret>,
    /// Milliseconds to wait for a gateway before a payment's outcome counts as unknown
    #[arg(long, env = "PAYMENT_GATEWAY_TIMEOUT_MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub payment_gateway_timeout_ms: u64,
    /// A bearer token sent to the gateways
    #[arg(long, env = "PAYMENT_GATEWAY_TOKEN", hide_env_values = true)]
    pub payment_gateway_token: Option<Secret>,
    /// Seconds after which a payment that the gateway does not know counts as declined
    #[arg(long, env = "PAYMENT_GATEWAY_GIVE_UP_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(i64).range(0..=86_400))]
    pub payment_gateway_give_up_seconds: i64,
    /// Seconds for which the gateway is still queried about such a payment, to refund money that it took late
    #[arg(long, env = "PAYMENT_GATEWAY_WATCH_SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(i64).range(0..=2_592_000))]
    pub payment_gateway_watch_seconds: i64,
}

impl GatewayConfig {
    /// The URLs of the configured gateways.
    pub fn urls(&self) -> impl Iterator<Item = (PaymentType, &Secret)> {
        [
            (PaymentType::Card, &self.payment_gateway_card_url),
            (PaymentType::KakaoPay, &self.payment_gateway_kakao_pay_url),
            (PaymentType::Toss, &self.payment_gateway_toss_url),
        ]
        .into_iter()
        .filter_map(|(kind, url)| Some((kind, url.as_ref()?)))
    }
}
