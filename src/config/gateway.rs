//! Settings of the payment gateways.

use clap::{Args, ValueEnum};

use super::Secret;
use crate::model::PaymentType;

/// The protocol of the gateway of a payment type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GatewayProtocol {
    /// The generic protocol.
    #[default]
    Http,
    /// Toss Payments.
    Toss,
    /// KakaoPay, online payments.
    #[value(name = "kakaopay")]
    KakaoPay,
    /// PortOne V2.
    #[value(name = "portone")]
    PortOne,
}

impl GatewayProtocol {
    /// Where the provider's API is; `None` of the generic protocol.
    fn url(self) -> Option<&'static str> {
        match self {
            GatewayProtocol::Http => None,
            GatewayProtocol::Toss => Some("https://api.tosspayments.com"),
            GatewayProtocol::KakaoPay => Some("https://open-api.kakaopay.com"),
            GatewayProtocol::PortOne => Some("https://api.portone.io"),
        }
    }
}

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
    /// The provider of CARD payments
    #[arg(long, env = "PAYMENT_PROVIDER_CARD", value_enum, default_value = "http")]
    pub payment_provider_card: GatewayProtocol,
    /// The provider of KAKAO_PAY payments
    #[arg(long, env = "PAYMENT_PROVIDER_KAKAO_PAY", value_enum, default_value = "http")]
    pub payment_provider_kakao_pay: GatewayProtocol,
    /// The provider of TOSS payments
    #[arg(long, env = "PAYMENT_PROVIDER_TOSS", value_enum, default_value = "http")]
    pub payment_provider_toss: GatewayProtocol,
    /// The secret key of Toss Payments
    #[arg(long, env = "TOSS_SECRET_KEY", hide_env_values = true)]
    pub toss_secret_key: Option<Secret>,
    /// The secret key of KakaoPay
    #[arg(long, env = "KAKAOPAY_SECRET_KEY", hide_env_values = true)]
    pub kakaopay_secret_key: Option<Secret>,
    /// The shop's code at KakaoPay
    #[arg(long, env = "KAKAOPAY_CID")]
    pub kakaopay_cid: Option<String>,
    /// The V2 API secret of PortOne
    #[arg(long, env = "PORTONE_API_SECRET", hide_env_values = true)]
    pub portone_api_secret: Option<Secret>,
    /// The secret of PortOne's webhooks
    #[arg(long, env = "PORTONE_WEBHOOK_SECRET", hide_env_values = true)]
    pub portone_webhook_secret: Option<Secret>,
    /// The shop at PortOne, if the account has several
    #[arg(long, env = "PORTONE_STORE_ID")]
    pub portone_store_id: Option<String>,
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
    /// The payment types with a gateway, each with its protocol and its URL.
    pub fn gateways(&self) -> impl Iterator<Item = (PaymentType, GatewayProtocol, String)> {
        [
            (PaymentType::Card, self.payment_provider_card, &self.payment_gateway_card_url),
            (PaymentType::KakaoPay, self.payment_provider_kakao_pay, &self.payment_gateway_kakao_pay_url),
            (PaymentType::Toss, self.payment_provider_toss, &self.payment_gateway_toss_url),
        ]
        .into_iter()
        .filter_map(|(kind, protocol, url)| {
            let url = url.as_ref().map(|url| url.expose().to_owned());
            Some((kind, protocol, url.or_else(|| protocol.url().map(str::to_owned))?))
        })
    }
}
