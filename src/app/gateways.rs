//! The payment gateways, from the configuration.

use std::time::Duration;

use anyhow::Context;

use crate::{
    config::{GatewayConfig, GatewayProtocol, Secret},
    gateway::{self, Gateways, ProviderConfig},
};

/// Creates the clients of the gateways. Connects to no gateway.
pub(super) fn gateways(config: &GatewayConfig) -> anyhow::Result<Gateways> {
    let timeout = Duration::from_millis(config.payment_gateway_timeout_ms);
    let exposed = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    let gateways = config.gateways().map(|(kind, protocol, url)| {
        let needed = |secret: &Option<Secret>, name: &str| {
            exposed(secret).with_context(|| format!("{name} is not set, and the provider of {kind} needs it"))
        };
        let of_kind = match protocol {
            GatewayProtocol::Http => {
                let token = exposed(&config.payment_gateway_token);
                ProviderConfig::Http(gateway::HttpGatewayConfig { url, timeout, token })
            }
            GatewayProtocol::Toss => {
                let secret_key = needed(&config.toss_secret_key, "TOSS_SECRET_KEY")?;
                ProviderConfig::Toss(gateway::TossConfig { url, timeout, secret_key })
            }
            GatewayProtocol::KakaoPay => {
                let secret_key = needed(&config.kakaopay_secret_key, "KAKAOPAY_SECRET_KEY")?;
                let cid = config.kakaopay_cid.clone();
                let cid =
                    cid.with_context(|| format!("KAKAOPAY_CID is not set, and the provider of {kind} needs it"))?;
                ProviderConfig::KakaoPay(gateway::KakaoPayConfig { url, timeout, secret_key, cid })
            }
            GatewayProtocol::PortOne => {
                let api_secret = needed(&config.portone_api_secret, "PORTONE_API_SECRET")?;
                let (store_id, webhook_secret) =
                    (config.portone_store_id.clone(), exposed(&config.portone_webhook_secret));
                ProviderConfig::PortOne(gateway::PortOneConfig { url, timeout, api_secret, store_id, webhook_secret })
            }
        };
        Ok::<_, anyhow::Error>((kind, of_kind))
    });
    let gateways = gateways.collect::<anyhow::Result<Vec<_>>>().and_then(|configs| Ok(Gateways::connect(configs)?));
    gateways.context("the payment gateways can't be set up")
}
